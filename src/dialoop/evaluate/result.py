"""What an evaluation finds: scores and cases by task and checkpoint."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel

from dialoop.core.schema import Result
from dialoop.evaluate.statistics import Form, difference, estimate, interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from dialoop.evaluate.statistics import Array

Direction = Literal["lower", "higher", "neither"]
Verdict = Literal["better", "worse", "cannot tell", "same", ""]

SURE = 0.05
"""Differences that chance would make less often than this are called better or worse."""


class Observed(BaseModel, frozen=True):
    """What one question adds to a score."""

    id: str
    value: float
    weight: float = 1.0
    """What the value is divided by in the mean: 1 for questions, the tokens for a loss."""


class Score(BaseModel, frozen=True):
    """One number about one checkpoint."""

    name: str
    value: float
    unit: str
    better: Direction
    """Which direction is an improvement; `neither` for counts."""
    best: float | None = None
    """The largest value that there can be; None where there is no bound."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval; None where there is none."""
    form: Form = "mean"
    """How the value comes from what was observed."""
    observed: tuple[Observed, ...] = ()
    """By question; empty for numbers that no test can be made of."""

    @classmethod
    def of(
        cls,
        name: str,
        observed: Sequence[Observed],
        *,
        unit: str = "",
        better: Direction = "higher",
        best: float | None = None,
        form: Form = "mean",
    ) -> Score:
        """A score with its interval, from what each question adds; at least one question."""
        arrays = _arrays(observed)
        low, high = interval(*arrays, form) or (None, None)
        return cls(
            name=name,
            value=estimate(*arrays, form),
            unit=unit,
            better=better,
            best=best,
            low=low,
            high=high,
            form=form,
            observed=tuple(observed),
        )


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
    group: str = ""
    """What the question belongs to: a subject, a category, a length."""


class Grid(BaseModel, frozen=True):
    """Numbers by two things, such as length and depth; shown as a table of coloured cells."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """By row and column, 0 to 1; None where nothing was measured."""


class Measured(BaseModel, frozen=True):
    """What one task found on one checkpoint."""

    task: str
    scores: tuple[Score, ...] = ()
    cases: tuple[Case, ...] = ()
    grids: tuple[Grid, ...] = ()

    def score(self, name: str) -> Score | None:
        """A score by name; None when it was not measured."""
        return next((s for s in self.scores if s.name == name), None)


class Checkpoint(BaseModel, frozen=True):
    """Everything measured on one checkpoint."""

    name: str
    """As the user wrote it."""
    tokenizer: str
    """Digest of the tokenizer: losses are comparable only where it is the same; empty for an
    endpoint, which does not say."""
    measured: tuple[Measured, ...] = ()

    def score(self, name: str) -> float | None:
        """A score by name, of the first task that has it; None when it was not measured."""
        found = [s.value for m in self.measured for s in m.scores if s.name == name]
        return found[0] if found else None

    def task(self, name: str) -> Measured | None:
        """What one task found; None when it did not run."""
        return next((m for m in self.measured if m.task == name), None)


class Comparison(BaseModel, frozen=True):
    """One score of the model less that of the checkpoint it is compared with."""

    task: str
    score: str
    difference: float
    """On the questions that both answered."""
    low: float
    high: float
    """Ends of the 95 % interval, by the paired bootstrap."""
    p: float
    """Chance of so large a difference, either way, if the two were alike."""
    test: str
    pairs: int
    """Questions that both answered."""
    verdict: Literal["better", "worse", "cannot tell"]


class PastRun(BaseModel, frozen=True):
    """The scores of the model of an earlier evaluation."""

    name: str
    """The folder of the run."""
    made: str
    """Day and time, ISO 8601 in UTC."""
    scores: dict[str, float]
    """By `task: score`."""


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
    comparisons: tuple[Comparison, ...] = ()
    """For every score with questions that both answered."""
    history: tuple[PastRun, ...] = ()
    """Earlier runs, oldest first."""
    made: str = ""
    """When it was measured: day and time, ISO 8601 in UTC."""
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

    def comparison(self, task: str, score: str) -> Comparison | None:
        """The comparison of one score; None where no question was answered by both."""
        found = (c for c in self.comparisons if (c.task, c.score) == (task, score))
        return next(found, None)

    def text(self) -> RenderableType:
        """A table of the scores, and where the report is."""
        from rich.console import Group
        from rich.table import Table

        table = Table("score", *self.labels, "unit", "change")
        for row in score_rows(self):
            table.add_row(row.name, *row.values, row.unit, row.change)
        lines = [*self.notes, *([f"report: {self.report}"] if self.report else [])]
        return Group(table, *lines)


class Bar(BaseModel, frozen=True):
    """A value as a part of a bar's length, 0 to 1."""

    share: float
    low: float | None
    high: float | None


class ScoreRow(BaseModel, frozen=True):
    """One score of every checkpoint, ready to show."""

    task: str
    name: str
    """After its task's where several tasks have such a score."""
    unit: str
    values: tuple[str, ...]
    """With the 95 % interval in brackets; `-` where a checkpoint has none."""
    bars: tuple[Bar, ...]
    """Of the best or the largest value."""
    is_judged: bool
    """Whether a direction is an improvement; else it is a count."""
    change: str
    """From the compared checkpoint to the model: `-41.2 % (better, p = 0.002)`; empty with one."""
    verdict: Verdict = ""


class CaseRow(BaseModel, frozen=True):
    """One question and every checkpoint's answer to it."""

    id: str
    question: str
    reference: str | None
    group: str
    answers: tuple[Case, ...]


def compared(model: Checkpoint, before: Checkpoint) -> tuple[Comparison, ...]:
    """Every score that has a direction, on the questions that both checkpoints answered."""
    found: list[Comparison] = []
    for part in model.measured:
        old = before.task(part.task)
        for score in part.scores:
            other = old.score(score.name) if old else None
            if other and score.better != "neither":
                found += _compared(part.task, score, other)
    return tuple(found)


def score_rows(result: EvaluateResult) -> list[ScoreRow]:
    """The scores side by side, in the order they were measured."""
    rows: list[ScoreRow] = []
    names = [score.name for part in result.model.measured for score in part.scores]
    for part in result.model.measured:
        for score in part.scores:
            parts = [c.task(part.task) for c in result.checkpoints]
            scores = [m.score(score.name) if m else None for m in parts]
            comparison = result.comparison(part.task, score.name)
            shown = score.name if names.count(score.name) == 1 else f"{part.task}: {score.name}"
            rows.append(_score_row(part.task, shown, score, scores, comparison))
    return rows


def case_rows(result: EvaluateResult, task: str) -> list[CaseRow]:
    """The cases of one task side by side: those that every checkpoint has."""
    parts = [c.task(task) for c in result.checkpoints]
    columns = [{case.id: case for case in part.cases} for part in parts if part]
    return [
        CaseRow(
            id=case.id,
            question=case.question,
            reference=case.reference,
            group=case.group,
            answers=tuple(column[case.id] for column in columns),
        )
        for case in columns[-1].values()
        if all(case.id in column for column in columns)
    ]


def _compared(task: str, score: Score, before: Score) -> list[Comparison]:
    olds = {item.id: item for item in before.observed}
    new = [item for item in score.observed if item.id in olds]
    if not new:
        return []
    old = [olds[item.id] for item in new]
    found = difference(_arrays(old), _arrays(new), score.form)
    verdict: Literal["better", "worse", "cannot tell"] = "cannot tell"
    if found.p < SURE:
        verdict = "better" if (found.value < 0) == (score.better == "lower") else "worse"
    return [
        Comparison(
            task=task,
            score=score.name,
            difference=found.value,
            low=found.low,
            high=found.high,
            p=found.p,
            test=found.test,
            pairs=found.pairs,
            verdict=verdict,
        )
    ]


def _arrays(observed: Sequence[Observed]) -> tuple[Array, Array]:
    values = np.array([item.value for item in observed])
    return values, np.array([item.weight for item in observed])


def _score_row(
    task: str,
    name: str,
    score: Score,
    scores: Sequence[Score | None],
    comparison: Comparison | None,
) -> ScoreRow:
    known = [s for s in scores if s is not None]
    largest = score.best or max(abs(s.high if s.high is not None else s.value) for s in known) or 1
    change, verdict = "", ""
    if len(scores) == 2 and len(known) == 2 and score.better != "neither":
        before, after = (s.value for s in known)
        verdict = _verdict(before, after, comparison)
        sure = f", p = {comparison.p:.2g}" if comparison and verdict != "same" else ""
        change = f"{_percent(before, after)} ({verdict}{sure})"
    return ScoreRow(
        task=task,
        name=name,
        unit=score.unit,
        values=tuple(_written(s) for s in scores),
        bars=tuple(_bar(s, largest) for s in scores),
        is_judged=score.better != "neither",
        change=change,
        verdict=verdict,
    )


def _bar(score: Score | None, largest: float) -> Bar:
    if score is None:
        return Bar(share=0, low=None, high=None)
    if score.low is None or score.high is None:
        return Bar(share=_share(score.value, largest), low=None, high=None)
    ends = _share(score.low, largest), _share(score.high, largest)
    return Bar(share=_share(score.value, largest), low=min(ends), high=max(ends))


def _share(value: float, largest: float) -> float:
    return min(1.0, abs(value) / largest)


def _verdict(before: float, after: float, comparison: Comparison | None) -> Verdict:
    if before == after:
        return "same"
    return comparison.verdict if comparison else "cannot tell"


def _percent(before: float, after: float) -> str:
    if not before:
        return f"{after - before:+.4g}"
    return f"{100 * (after - before) / abs(before):+.1f} %"


def _written(score: Score | None) -> str:
    if score is None:
        return "-"
    if score.low is None or score.high is None:
        return _number(score.value)
    return f"{_number(score.value)} [{_number(score.low)}, {_number(score.high)}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"
