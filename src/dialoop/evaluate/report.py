"""Reports of an evaluation: Markdown, and one HTML file that asks no other host for anything."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2

from dialoop import __version__
from dialoop.evaluate.result import case_rows, score_rows

if TYPE_CHECKING:
    from dialoop.evaluate.result import CaseRow, EvaluateResult

TITLES = {
    "loss": "Held-out loss",
    "answers": "Answers to held-out dialogues",
    "suite": "Checked questions",
}


def markdown(result: EvaluateResult) -> str:
    """The report as GitHub-flavoured Markdown."""
    names = result.labels
    out = ["# Evaluation", ""]
    out += [f"- {c.name}" for c in result.checkpoints]
    out += ["", *(f"> {note}" for note in result.notes)]
    out += _table(["score", *names, "unit", "change"])
    out += [_line([row.name, *row.values, row.unit, row.change]) for row in score_rows(result)]
    for part in result.model.measured:
        if part.cases:
            out += ["", f"## {_title(part.task)}"]
            for row in case_rows(result, part.task):
                out += _markdown_case(row, names)
    return "\n".join(out) + "\n"


def html(result: EvaluateResult) -> str:
    """The report as one HTML page with its style inside."""
    page = files("dialoop.evaluate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    tasks = [
        (_title(part.task), case_rows(result, part.task))
        for part in result.model.measured
        if part.cases
    ]
    return environment.from_string(page).render(
        names=result.labels,
        paths=[c.name for c in result.checkpoints],
        scores=score_rows(result),
        tasks=tasks,
        notes=result.notes,
        version=__version__,
    )


def _title(task: str) -> str:
    return TITLES.get(task, task.replace("_", " ").capitalize())


def _markdown_case(row: CaseRow, names: tuple[str, ...]) -> list[str]:
    out = ["", f"### {_inline(row.id)}", "", _quote(row.question)]
    if row.reference is not None:
        out += ["", "**reference**", "", _quote(row.reference)]
    for name, case in zip(names, row.answers, strict=True):
        mark = "" if case.passed is None else " (pass)" if case.passed else " (fail)"
        out += ["", f"**{_inline(name)}**{mark}", "", _quote(case.answer)]
        out += [f"- {_inline(problem)}" for problem in case.problems]
    return out


def _quote(text: str) -> str:
    """Text of others as a code block, whose fence is longer than any within."""
    longest = max((len(run) for run in text.split() if set(run) == {"`"}), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _table(head: list[str]) -> list[str]:
    return ["", _line(head), _line(["---"] * len(head))]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_inline(cell) for cell in cells) + " |"


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
