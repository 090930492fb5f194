"""The data jobs: convert, inspect, list."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from dialoop.chat.template import Template
from dialoop.core import env
from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Stage
from dialoop.core.files import machine_errors
from dialoop.core.schema import Result
from dialoop.data import catalog
from dialoop.data.lengths import TokenStats, measure
from dialoop.data.load import choose, gather
from dialoop.data.report import DataReport  # noqa: TC001  pydantic reads the annotation
from dialoop.data.spec import DataSpec, Reading
from dialoop.data.tokenize import tokenize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import RenderableType

    from dialoop.core.events import Event
    from dialoop.data.spec import ConvertJob, InspectJob, ListJob

MAX_TOKENS = 1 << 20
"""Longer rows are counted as this long in statistics."""


class ConvertResult(Result, frozen=True):
    """Counts of a conversion; read = kept + rejected + duplicates + filtered."""

    read: int
    kept: int
    rejected: int
    duplicates: int
    filtered: int
    output: Path
    rejected_path: Path
    """Rejected rows: file, line, reason, excerpt."""
    dropped_path: Path | None = None
    """Duplicate and filtered rows; None where there are none."""
    reasons: dict[str, int] = Field(default={})
    """Rejected rows by reason."""
    report: DataReport = Field(exclude=True)

    def text(self) -> str:
        """The report and where the files are."""
        lines = [*self.report.lines(), f"written: {self.output}"]
        if self.rejected:
            lines.append(f"rejected rows: {self.rejected_path}")
        if self.dropped_path:
            lines.append(f"duplicate and filtered rows: {self.dropped_path}")
        return "\n".join(lines)


def convert(job: ConvertJob, emit: Callable[[Event], None]) -> ConvertResult:
    """Write data as canonical JSON Lines, and what was left out beside it.

    Raises:
        UserError: a path is missing or unreadable, or no row is usable; the rejected rows are
            written even then.
        MachineError: the output may not be written, or a package is missing.
    """
    if job.output.is_dir():
        raise UserError(f"output `{job.output}` is a folder", hint="name a .jsonl file")
    if above := next((p for p in job.output.parents if p.is_file()), None):
        raise UserError(f"output: `{above}` is a file, not a folder", hint="choose another place")
    spec = _spec(job)
    template = Template.from_folder(Path(job.model)) if job.model else None
    data = gather(spec, emit, *_measure(template))
    report = data.report
    emit(Stage("Write"))
    stem = job.output.name.removesuffix(job.output.suffix)
    rejected = job.output.with_name(f"{stem}.rejected.jsonl")
    dropped = job.output.with_name(f"{stem}.dropped.jsonl")
    _copy(rejected, data.rejected)
    has_dropped = report.duplicates + report.filtered > 0
    if has_dropped:
        _copy(dropped, data.dropped)
    _write_whole(job.output, choose(spec, data).train.raw_lines())
    emit(Artifact("data", str(job.output)))
    reasons = {r.reason: r.count for r in report.reasons if r.outcome == "rejected"}
    return ConvertResult(
        **{n: getattr(report, n) for n in ("read", "kept", "rejected", "duplicates", "filtered")},
        output=job.output,
        rejected_path=rejected,
        dropped_path=dropped if has_dropped else None,
        reasons=reasons,
        report=report,
    )


def _spec(job: ConvertJob | InspectJob) -> DataSpec:
    shared = {name: getattr(job, name) for name in Reading.model_fields}
    return DataSpec(dataset=job.paths, cleaning=job.cleaning, seed=job.seed, **shared)


def _copy(target: Path, source: Path) -> None:
    with source.open("rb") as file:
        _write_whole(target, file)


def _write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Stream pieces into a file that appears when it is complete."""
    with machine_errors(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class InspectResult(Result, frozen=True):
    """What data holds."""

    report: DataReport
    samples: int
    """Rows that would be trained on."""
    tokens: TokenStats | None = None
    """None without a model."""
    untrained: dict[str, int] = Field(default={})
    """Rows without tokens to learn from, by reason."""
    previews: list[list[tuple[str, float]]] = Field(default=[])
    """The text of some rows, cut where the loss weight changes, with that weight."""

    def text(self) -> RenderableType:
        """The report, the histogram and the rows, what is learned in [[double brackets]]."""
        from rich.console import Group
        from rich.text import Text

        lines = list(self.report.lines())
        if self.tokens:
            lines += ["", *self.tokens.lines()]
        lines += [f"no tokens: {why}: {n} rows" for why, n in self.untrained.items()]
        parts = [Text("\n".join(lines))]
        for number, spans in enumerate(self.previews, 1):
            shown = Text(f"\nrow {number}, learned text in [[ ]]\n", style="bold")
            for piece, weight in spans:
                if weight > 0:
                    shown.append(f"[[{piece}]]", style="not bold green")
                else:
                    shown.append(piece, style="not bold dim")
            parts.append(shown)
        return Group(*parts)


def inspect(job: InspectJob, emit: Callable[[Event], None]) -> InspectResult:
    """Read data as training would, and report what it holds.

    Raises:
        UserError: a path is missing or unreadable, or no row is usable.
        MachineError: a package is missing.
    """
    spec = _spec(job)
    template = Template.from_folder(Path(job.model)) if job.model else None
    data = gather(spec, emit, *_measure(template))
    if not data.report.kept:
        return InspectResult(report=data.report, samples=0)
    samples = choose(spec, data).train
    if template is None:
        return InspectResult(report=data.report, samples=len(samples))
    emit(Stage("Tokenise"))
    rows = tokenize(
        samples,
        template,
        max_length=MAX_TOKENS,
        overlong="truncate",
        workers=env.num_cpus(),
        cache=env.home() / "tokens",
        emit=emit,
        digest=samples.digest,
    )
    shown = np.linspace(0, len(rows) - 1, min(job.samples, len(rows))).astype(int).tolist()
    return InspectResult(
        report=data.report,
        samples=len(samples),
        tokens=measure(rows.lengths, rows.num_targets),
        untrained=rows.reasons,
        previews=[template.spans(rows.row(number)) for number in shown],
    )


def _measure(template: Template | None) -> tuple[Callable[[str], int] | None, str]:
    """(tokens of a text, identity of the tokenizer) where there is one."""
    if template is None:
        return None, ""
    tokenizer = template.tokenizer
    return (lambda text: len(tokenizer.encode(text))), tokenizer.digest


class ListResult(Result, frozen=True):
    """The catalog."""

    datasets: list[dict[str, str]]

    def text(self) -> str:
        """A line a data set."""
        titles = {name: name for name in ("name", "task", "language", "layout", "licence")}
        return "\n".join(
            f"{d['name']:20} {d['task']:11} {d['language']:8} {d['layout']:15} {d['licence']:16}"
            f" {d['hf'] or d['ms']}"
            for d in [titles | {"hf": "source"}, *self.datasets]
        )


def list_datasets(job: ListJob, emit: Callable[[Event], None]) -> ListResult:
    """The known data sets, those of one language or task only if asked."""
    del emit
    wanted = [
        e
        for e in catalog.ENTRIES
        if job.language in {None, *e.language.split(", ")} and job.task in {None, e.task}
    ]
    fields = ("name", "task", "language", "layout", "licence", "hf", "ms")
    return ListResult(
        datasets=[
            {f: getattr(e, f) for f in fields} | {"aliases": ", ".join(e.aliases)} for e in wanted
        ]
    )
