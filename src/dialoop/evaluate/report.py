"""Reports of an evaluation: Markdown, and one HTML file that asks no other host for anything.

The charts are drawn here as SVG and by the page's style, without a script.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2

from dialoop import __version__
from dialoop.evaluate.result import case_rows, score_rows

if TYPE_CHECKING:
    from dialoop.evaluate.result import CaseRow, EvaluateResult, Grid

TITLES = {
    "loss": "Held-out loss",
    "answers": "Answers to held-out dialogues",
    "suite": "Checked questions",
    "choice": "Multiple choice",
    "instructions": "Instruction following",
    "tool_calls": "Tool calls",
    "recall": "Recall over turns",
    "haystack": "Needle in a haystack",
    "judge": "Judged pairs",
}

WIDTH, HEIGHT = 100.0, 40.0
"""Of a history chart, in its own units."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference and its 95 % interval, in per cent of a line's length."""

    name: str
    low: float
    high: float
    middle: float
    zero: float
    verdict: str
    words: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One score over several runs."""

    name: str
    points: tuple[tuple[float, float], ...]
    """In the units of the chart, oldest first."""
    values: tuple[str, ...]
    runs: tuple[str, ...]

    @property
    def line(self) -> str:
        """The points as SVG writes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


def markdown(result: EvaluateResult) -> str:
    """The report as GitHub-flavoured Markdown."""
    names = result.labels
    out = ["# Evaluation", ""]
    out += [f"- {c.name}" for c in result.checkpoints]
    out += ["", *(f"> {note}" for note in result.notes)]
    out += _table(["score", *names, "unit", "change"])
    out += [_line([row.name, *row.values, row.unit, row.change]) for row in score_rows(result)]
    if result.comparisons:
        out += ["", "## Differences", ""]
        out += ["The model less what it is compared with, on the questions that both answered."]
        out += _table(["score", "difference", "95 % interval", "p", "test", "pairs", "verdict"])
        for c in result.comparisons:
            ends = f"[{c.low:.4g}, {c.high:.4g}]"
            cells = [f"{c.task}: {c.score}", f"{c.difference:+.4g}", ends, f"{c.p:.3g}"]
            out.append(_line([*cells, c.test, str(c.pairs), c.verdict]))
    for curve in curves(result):
        out += ["", f"## {curve.name} over time", *_table(["run", "value"])]
        out += [_line(list(cells)) for cells in zip(curve.runs, curve.values, strict=True)]
    for part in result.model.measured:
        if part.cases or part.grids:
            out += ["", f"## {_title(part.task)}"]
            for name, grid in _grids(result, part.task):
                out += _markdown_grid(name, grid)
            for row in case_rows(result, part.task):
                out += _markdown_case(row, names)
    return "\n".join(out) + "\n"


def html(result: EvaluateResult) -> str:
    """The report as one HTML page with its style inside."""
    page = files("dialoop.evaluate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    tasks = [
        (_title(part.task), _grids(result, part.task), case_rows(result, part.task))
        for part in result.model.measured
        if part.cases or part.grids
    ]
    return environment.from_string(page).render(
        names=result.labels,
        paths=[c.name for c in result.checkpoints],
        scores=score_rows(result),
        tasks=tasks,
        differences=differences(result),
        curves=curves(result),
        made=result.made,
        notes=result.notes,
        version=__version__,
    )


def differences(result: EvaluateResult) -> list[Interval]:
    """The comparisons, each on a line of its own length with 0 on it."""
    found: list[Interval] = []
    for c in result.comparisons:
        low, high = min(c.low, c.difference, 0.0), max(c.high, c.difference, 0.0)
        room = 0.1 * (high - low) or 1.0
        start, length = low - room, high - low + 2 * room

        def place(value: float, start: float = start, length: float = length) -> float:
            return 100 * (value - start) / length

        found.append(
            Interval(
                name=f"{_title(c.task)}: {c.score}",
                low=place(c.low),
                high=place(c.high),
                middle=place(c.difference),
                zero=place(0.0),
                verdict=c.verdict,
                words=f"{c.difference:+.4g} [{c.low:.4g}, {c.high:.4g}], {c.test}, p = {c.p:.2g}, "
                f"{c.pairs} pairs: {c.verdict}",
            )
        )
    return found


def curves(result: EvaluateResult) -> list[Curve]:
    """Every judged score that earlier runs have, too, over time; this run is the last point."""
    found: list[Curve] = []
    for part in result.model.measured:
        for score in part.scores:
            key = f"{part.task}: {score.name}"
            runs = [run for run in result.history if key in run.scores]
            if not runs or score.better == "neither":
                continue
            values = [*(run.scores[key] for run in runs), score.value]
            names = (*(f"{run.name} ({run.made})" for run in runs), "this run")
            low, length = min(values), (max(values) - min(values)) or 1.0
            step = WIDTH / (len(values) - 1)
            points = tuple(
                (n * step, HEIGHT * (1 - (value - low) / length)) for n, value in enumerate(values)
            )
            shown = tuple(f"{value:.4g}" for value in values)
            found.append(Curve(f"{_title(part.task)}: {score.name}", points, shown, names))
    return found


def _grids(result: EvaluateResult, task: str) -> list[tuple[str, Grid]]:
    """Every checkpoint's grids of one task, with its name."""
    pairs = zip(result.labels, result.checkpoints, strict=True)
    return [
        (label, grid)
        for label, checkpoint in pairs
        if (part := checkpoint.task(task))
        for grid in part.grids
    ]


def _markdown_grid(name: str, grid: Grid) -> list[str]:
    out = ["", f"**{_inline(name)}**: {_inline(grid.title)}", *_table(["", *grid.columns])]
    for row, values in zip(grid.rows, grid.values, strict=True):
        out.append(_line([row, *("-" if v is None else f"{v:.2f}" for v in values)]))
    return out


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
