"""Tool calls: the right functions with the right arguments, or no call where none fits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.chat.message import Tool, from_openai, tool_from_openai
from dialoop.core.errors import UserError
from dialoop.evaluate import calls, records
from dialoop.evaluate.result import Case, Grid, Measured, Observed, Score
from dialoop.evaluate.tasks import Prompt, Task

if TYPE_CHECKING:
    from dialoop.evaluate.tasks import Material, Reply, Subject

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Question:
    id: str
    category: str
    prompt: Prompt
    wanted: tuple[Json, ...] | None
    """The calls with their allowed values; None where any call will do."""


class ToolCalls(Task, frozen=True):
    """The share of questions that are answered by exactly the calls that were wanted."""

    kind: Literal["tool_calls"] = "tool_calls"
    files: list[str] = Field(min_length=1)
    """BFCL question files, with `possible_answer/` beside them (`irrelevance` wants no call,
    `relevance` any); or dialogues with `tools` that end with the wanted calls."""
    limit: PositiveInt | None = None
    """At most so many questions of each file, the first ones."""

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Ask every question once and compare its calls."""
        del material
        questions = [q for file in self.files for q in _load(file)[: self.limit]]
        replies = subject.replies([q.prompt for q in questions])
        cases = [_case(q, reply) for q, reply in zip(questions, replies, strict=True)]
        groups: dict[str, list[bool]] = {}
        for case in cases:
            groups.setdefault(case.group, []).append(case.passed is True)
        passes = [Observed(id=c.id, value=float(c.passed is True)) for c in cases]
        return Measured(
            task=self.title,
            scores=(
                Score.of("calls right", passes, best=1),
                Score(name="questions", value=len(cases), unit="", better="neither"),
            ),
            cases=tuple(cases),
            grids=(
                Grid(
                    title="calls right by category",
                    rows=tuple(groups),
                    columns=("share",),
                    values=tuple((sum(group) / len(group),) for group in groups.values()),
                ),
            ),
        )


def _load(file: str) -> list[_Question]:
    path = Path(file)
    rows = records.objects([file], "tool_calls")
    if "messages" in rows[0][1]:
        return [_of_dialogue(row, where, path.stem) for where, row in rows]
    category = path.stem.split("_", 2)[-1] if path.stem.startswith("BFCL_") else path.stem
    if any("involved_classes" in row for _, row in rows):
        raise UserError(
            f"task tool_calls: `{file}` needs the simulated systems of BFCL's multi-turn questions",
            hint="give single-turn files, such as BFCL_v4_simple_python.json",
        )
    if "relevance" in category:
        none: tuple[Json, ...] | None = () if "irrelevance" in category else None
        answers = dict.fromkeys((str(row.get("id")) for _, row in rows), none)
    else:
        answers = _answers(path)
    return [_of_bfcl(row, where, category, answers) for where, row in rows]


def _answers(path: Path) -> dict[str, tuple[Json, ...] | None]:
    beside = path.parent / "possible_answer" / path.name
    if not beside.is_file():
        raise UserError(f"task tool_calls: no answers for `{path}`", hint=f"put them at `{beside}`")
    rows = records.objects([str(beside)], "tool_calls")
    return {
        str(records.field(row, "id", where, "tool_calls")): tuple(row["ground_truth"])
        for where, row in rows
    }


def _of_bfcl(
    row: Json, where: str, category: str, answers: dict[str, tuple[Json, ...] | None]
) -> _Question:
    name = str(records.field(row, "id", where, "tool_calls"))
    if name not in answers:
        raise UserError(f"task tool_calls: {where}: `{name}` has no answer in possible_answer")
    rounds = records.field(row, "question", where, "tool_calls")
    turns = tuple(from_openai(item, f"{where}: question[0]") for item in rounds[0])
    tools = [tool_from_openai(raw, where) for raw in records.field(row, "function", where, "")]
    known = tuple(
        Tool(calls.safe_name(t.name), t.description, calls.standard_schema(t.parameters))
        for t in tools
    )
    return _Question(f"{category}/{name}", category, Prompt(turns, known), answers[name])


def _of_dialogue(row: Json, where: str, category: str) -> _Question:
    items = [from_openai(m, f"{where}: messages[{n}]") for n, m in enumerate(row["messages"])]
    last = items[-1]
    if last.role != "assistant":
        raise UserError(
            f"task tool_calls: {where}: the dialogue ends with {last.role}",
            hint="let it end with the assistant's calls",
        )
    tools = tuple(tool_from_openai(raw, where) for raw in row.get("tools") or ())
    wanted = tuple(
        {call.name: {name: [value] for name, value in call.arguments.items()}}
        for call in last.tool_calls
    )
    name = f"{category}/{row.get('id') or where.rpartition(':')[2]}"
    return _Question(name, category, Prompt(tuple(items[:-1]), tools), wanted)


def _case(question: _Question, reply: Reply) -> Case:
    if question.wanted is None:
        wrong = () if reply.calls else ("makes no call",)
    elif not question.wanted:
        wrong = (f"calls `{reply.calls[0].name}`, and nothing fits",) if reply.calls else ()
    else:
        wrong = calls.problems(reply.calls, question.wanted, question.prompt.tools)
    written = [json.dumps({c.name: c.arguments}, ensure_ascii=False) for c in reply.calls]
    wanted = [json.dumps(call, ensure_ascii=False) for call in question.wanted or ()]
    return Case(
        id=question.id,
        question=question.prompt.messages[-1].text,
        answer="\n".join([*written, *([reply.text] if reply.text else [])]),
        reference="\n".join(wanted) or ("any call" if question.wanted is None else "no call"),
        passed=not wrong,
        problems=wrong,
        group=question.category,
    )
