"""What an evaluation finds: scores and cases by task and checkpoint."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from dialoop.core.schema import Result

if TYPE_CHECKING:
    from rich.console import RenderableType


class Score(BaseModel, frozen=True):
    """One number about one checkpoint."""

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher", "neither"]
    """Which direction is an improvement; `neither` for counts."""
    best: float | None = None
    """The largest value that there can be; None where there is no bound."""


class Case(BaseModel, frozen=True):
    """One question and the answer of one checkpoint."""

    id: str
    question: str
    answer: str
    reference: str | None = None
    """The answer that a person wrote, where there is one."""
    passed: bool | None = None
    """Whether the answer holds what it must; None where nothing is checked."""
    problems: tuple[str, ...] = ()
    """What is missing from the answer, or must not be in it."""


class Measured(BaseModel, frozen=True):
    """What one task found on one checkpoint."""

    task: str
    scores: tuple[Score, ...] = ()
    cases: tuple[Case, ...] = ()


class Checkpoint(BaseModel, frozen=True):
    """Everything measured on one checkpoint."""

    name: str
    """As the user wrote it."""
    tokenizer: str
    """Digest of the tokenizer: losses are comparable only where it is the same."""
    measured: tuple[Measured, ...] = ()

    def score(self, name: str) -> float | None:
        """A score by name; None when it was not measured."""
        found = [s.value for m in self.measured for s in m.scores if s.name == name]
        return found[0] if found else None

    def task(self, name: str) -> Measured | None:
        """What one task found; None when it did not run."""
        return next((m for m in self.measured if m.task == name), None)


class EvaluateResult(Result, frozen=True):
    """The outcome of an evaluation."""

    loss: float | None
    """Held-out loss of the model in nats per target token."""
    perplexity: float | None
    checks_passed: int | None
    """Questions of the suite whose answer holds what it must."""
    checks_total: int | None
    compare_loss: float | None
    """The same of the checkpoint that the model is compared with."""
    compare_perplexity: float | None
    compare_checks_passed: int | None
    model: Checkpoint
    compare: Checkpoint | None
    notes: tuple[str, ...] = ()
    """What must be known to read the numbers."""
    report: str | None = None
    """The HTML report; report.json and report.md stand beside it."""

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The compared checkpoint first (before), then the model (after)."""
        return (self.compare, self.model) if self.compare else (self.model,)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names for tables: the last parts of the paths, where those differ."""
        short = tuple(PurePath(c.name).name for c in self.checkpoints)
        return short if len(set(short)) == len(short) else tuple(c.name for c in self.checkpoints)

    def text(self) -> RenderableType:
        """A table of the scores, and where the report is."""
        from rich.console import Group
        from rich.table import Table

        table = Table("score", *self.labels, "unit", "change")
        for row in score_rows(self):
            table.add_row(row.name, *row.values, row.unit, row.change)
        lines = [*self.notes, *([f"report: {self.report}"] if self.report else [])]
        return Group(table, *lines)


class ScoreRow(BaseModel, frozen=True):
    """One score of every checkpoint, ready to show."""

    task: str
    name: str
    unit: str
    values: tuple[str, ...]
    shares: tuple[float, ...]
    """Each value as a share of the best or the largest, 0 to 1: the length of its bar."""
    is_judged: bool
    """Whether a direction is an improvement; else it is a count."""
    change: str
    """From the compared checkpoint to the model: `-41.2 % (better)`; empty with one checkpoint."""
    verdict: Literal["better", "worse", "same", ""] = ""


class CaseRow(BaseModel, frozen=True):
    """One question and every checkpoint's answer to it."""

    id: str
    question: str
    reference: str | None
    answers: tuple[Case, ...]


def score_rows(result: EvaluateResult) -> list[ScoreRow]:
    """The scores side by side, in the order they were measured."""
    rows: list[ScoreRow] = []
    for part in result.model.measured:
        for score in part.scores:
            values = [c.score(score.name) for c in result.checkpoints]
            rows.append(_score_row(part.task, score, [v for v in values if v is not None]))
    return rows


def case_rows(result: EvaluateResult, task: str) -> list[CaseRow]:
    """The cases of one task side by side."""
    columns = [m.cases for c in result.checkpoints if (m := c.task(task))]
    return [
        CaseRow(
            id=cases[0].id,
            question=cases[0].question,
            reference=cases[0].reference,
            answers=cases,
        )
        for cases in zip(*columns, strict=True)
    ]


def _score_row(task: str, score: Score, values: list[float]) -> ScoreRow:
    largest = score.best or max(abs(v) for v in values) or 1.0
    change, verdict = "", ""
    if len(values) == 2 and score.better != "neither":
        verdict = _verdict(score, *values)
        change = f"{_percent(*values)} ({verdict})"
    return ScoreRow(
        task=task,
        name=score.name,
        unit=score.unit,
        values=tuple(_number(v) for v in values),
        shares=tuple(abs(v) / largest for v in values),
        is_judged=score.better != "neither",
        change=change,
        verdict=verdict,
    )


def _verdict(score: Score, before: float, after: float) -> Literal["better", "worse", "same"]:
    if before == after:
        return "same"
    return "better" if (after < before) == (score.better == "lower") else "worse"


def _percent(before: float, after: float) -> str:
    if not before:
        return f"{after - before:+.4g}"
    return f"{100 * (after - before) / abs(before):+.1f} %"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"
