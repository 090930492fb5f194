"""Recall over turns: is a fact that the user told still known after further turns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from typing_extensions import override

from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.evaluate import records
from dialoop.evaluate.result import Case, Grid, Measured, Observed, Score
from dialoop.evaluate.tasks import Task
from dialoop.evaluate.words import holds

if TYPE_CHECKING:
    from dialoop.chat.message import Message
    from dialoop.evaluate.tasks import Material, Subject

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Fact:
    id: str
    turns: tuple[str, ...]
    """What the user says, the fact first."""
    question: str
    answers: tuple[str, ...]


class Recall(Task, frozen=True):
    """The share of facts that are recalled, by how many turns ago they were told."""

    kind: Literal["recall"] = "recall"
    files: list[str] = Field(min_length=1)
    """JSON Lines: `id`, `turns` (what the user says, the fact first), `question`, `answers` (any of
    them is right); or BFCL's memory questions, with their conversations and answers beside them."""
    distances: list[NonNegativeInt] = Field(default=[0, 2, 4], min_length=1)
    """How many of the user's turns stand between the fact and the question."""
    reply: str = "Thank you, I will keep that in mind."
    """What the assistant says to each of them."""
    limit: PositiveInt | None = None
    """At most so many facts, the first ones."""

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Tell and ask every fact at each distance."""
        del material
        facts = [fact for file in self.files for fact in _load(file)][: self.limit]
        asked = [
            (fact, distance)
            for distance in self.distances
            for fact in facts
            if len(fact.turns) > distance
        ]
        if not asked:
            raise UserError(
                f"task recall: no fact has more than {min(self.distances)} turns after it",
                hint="lower `distances`",
            )
        texts = subject.answers([self._dialogue(*item) for item in asked])
        cases = tuple(_case(*item, text) for item, text in zip(asked, texts, strict=True))
        known = [[c.passed is True for c in cases if c.group == f"{d}"] for d in self.distances]
        passes = [Observed(id=c.id, value=float(c.passed is True)) for c in cases]
        return Measured(
            task=self.title,
            scores=(
                Score.of("facts recalled", passes, best=1),
                Score(name="questions", value=len(cases), unit="", better="neither"),
            ),
            cases=cases,
            grids=(
                Grid(
                    title="facts recalled by turns between",
                    rows=("share",),
                    columns=tuple(map(str, self.distances)),
                    values=(tuple(sum(k) / len(k) if k else None for k in known),),
                ),
            ),
        )

    def _dialogue(self, fact: _Fact, distance: int) -> list[Message]:
        told = fact.turns[: distance + 1]
        turns = [
            m for text in told for m in (message("user", text), message("assistant", self.reply))
        ]
        return [*turns, message("user", fact.question)]


def _load(file: str) -> list[_Fact]:
    rows = records.objects([file], "recall")
    if "scenario" in rows[0][1]:
        return _of_bfcl(Path(file), rows)
    return [
        _Fact(
            str(row.get("id") or where),
            tuple(map(str, records.field(row, "turns", where, "recall"))),
            str(records.field(row, "question", where, "recall")),
            tuple(map(str, records.field(row, "answers", where, "recall"))),
        )
        for where, row in rows
    ]


def _of_bfcl(path: Path, rows: list[tuple[str, Json]]) -> list[_Fact]:
    beside = [
        path.parent / "possible_answer_memory.json", path.parent / "possible_answer" / path.name
    ]  # fmt: skip
    answers = next((file for file in beside if file.is_file()), None)
    if answers is None:
        raise UserError(f"task recall: no answers for `{path}`", hint=f"put them at `{beside[0]}`")
    known = {row["id"]: row for _, row in records.objects([str(answers)], "recall")}
    said: dict[str, list[str]] = {}
    facts: list[_Fact] = []
    for where, row in rows:
        scenario = str(row["scenario"])
        if scenario not in said:
            said[scenario] = _said(path.parent, scenario)
        if row["id"] not in known:
            raise UserError(f"task recall: {where}: `{row['id']}` has no answer")
        answer = known[row["id"]]
        at = _place(str(answer["source"]), said[scenario])
        texts = tuple(map(str, answer["ground_truth"]))
        asked = row["question"][0][-1]["content"]
        facts.append(_Fact(str(row["id"]), tuple(said[scenario][at:]), asked, texts))
    return facts


def _said(folder: Path, scenario: str) -> list[str]:
    file = folder / "memory_prereq_conversation" / f"memory_{scenario}.json"
    rows = records.objects([str(file)], "recall")
    return [t["content"] for _, row in rows for turns in row["question"] for t in turns]


def _place(source: str, said: list[str]) -> int:
    """The turn with the most words of the quoted source."""
    words = set(re.findall(r"\w+", source.casefold()))
    shared = [len(words & set(re.findall(r"\w+", text.casefold()))) for text in said]
    return shared.index(max(shared))


def _case(fact: _Fact, distance: int, text: str) -> Case:
    passed = holds(text, fact.answers)
    told = fact.turns[0]
    return Case(
        id=f"{fact.id} after {distance}",
        question=f"user: {told}\n({distance} further turns)\nuser: {fact.question}",
        answer=text,
        reference=" / ".join(fact.answers),
        passed=passed,
        problems=() if passed else ("has none of " + ", ".join(f"`{a}`" for a in fact.answers),),
        group=f"{distance}",
    )
