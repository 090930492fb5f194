"""Samples to units of rows of ids and weights: on all cores, cached by content, nothing lost."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from dialoop.core.errors import DialoopError, UserError
from dialoop.core.events import Note, Progress
from dialoop.core.files import new_folder
from dialoop.data.sample import Origin
from dialoop.data.units import Row, Unit, text_units

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from dialoop.chat.template import Template
    from dialoop.core.events import Event
    from dialoop.data.sample import Sample
    from dialoop.data.units import Encode

__all__ = ["Dropped", "Overlong", "Row", "TokenRows", "tokenize"]

Overlong = Literal["drop", "truncate", "split", "error"]
"""What becomes of a row longer than the limit."""

CHUNK = 128
"""Samples that a worker takes at once."""
FEW = 4 * CHUNK
"""Up to here starting workers takes longer than the work."""
LAYOUT = 3
"""Version of the files below; another version is made anew."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sample that trains nothing, and why."""

    origin: Origin | None
    reason: str


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the samples; `samples` = the samples with rows + `dropped`."""

    samples: int = 0
    dropped: int = 0
    truncated: int = 0
    """Rows cut at the limit."""
    split: int = 0
    """Rows cut into several."""


class TokenRows:
    """Rows on disk, mapped into memory: what `tokenize` returns.

    Args:
        folder: as `tokenize` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        self.counts = Counts(**facts["counts"])
        """What became of the samples."""
        self.dropped = [
            Dropped(Origin(*where) if where else None, reason) for where, reason in facts["dropped"]
        ]
        """Every sample without rows, in order."""
        self._starts = np.fromfile(folder / "starts.i64", np.int64)
        self.lengths: np.ndarray = np.diff(self._starts)
        """(n,) tokens of each row."""
        self._ids = _mapped(folder / "ids.i32", np.int32)
        self._weights = _mapped(folder / "weights.f32", np.float32)
        self._seconds = np.fromfile(folder / "seconds.i32", np.int32)
        self._units = np.fromfile(folder / "units.i64", np.int64)
        self._values = np.fromfile(folder / "values.f32", np.float32)
        self.unit_lengths: np.ndarray = np.diff(self._starts[self._units])
        """(u,) tokens of each unit, all its rows together."""
        self.num_targets: int = facts["num_targets"]
        """Tokens with a loss weight above zero."""
        self.digest: str = facts["digest"]
        """Identity of the content: samples, template, encoding and limits."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self._starts[-1])

    @property
    def reasons(self) -> dict[str, int]:
        """How many samples were dropped, by reason, most frequent first."""
        return dict(Counter(item.reason for item in self.dropped).most_common())

    def row(self, number: int) -> Row:
        """One row; its arrays are read-only views of the file."""
        part = slice(self._starts[number], self._starts[number + 1])
        return Row(self._ids[part], self._weights[part], int(self._seconds[number]))

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return len(self._values)

    def unit(self, number: int) -> Unit:
        """Rows that are learned together; `text_units` makes units of one row."""
        rows = range(self._units[number], self._units[number + 1])
        return Unit(tuple(map(self.row, rows)), float(self._values[number]))


def tokenize(
    samples: Collection[Sample],
    template: Template,
    *,
    max_length: int,
    overlong: Overlong,
    workers: int,
    cache: Path,
    emit: Callable[[Event], None],
    digest: str,
    encode: Encode = text_units,
    encoding: str = "text",
) -> TokenRows:
    """Render and tokenise samples, or find the result of an earlier time.

    Args:
        samples: what `encode` takes; another kind of sample is dropped with its reason.
        template: the checkpoint's way to write dialogues.
        max_length: tokens that a row may have.
        overlong: what becomes of a longer row: `drop` it, `truncate` its end, `split` it into rows
            that are read on their own, or stop with an `error`.
        workers: processes; few samples are done in this one.
        cache: folder of results, which may be deleted at any time.
        emit: receives progress, and a note about what was dropped or cut.
        digest: content hash of the samples.
        encode: makes the units of a sample; a function of a module, or a method of a Spec.
        encoding: its name, for the cache.

    Raises:
        UserError: every sample was dropped, or a row is too long and `overlong` is `error`.
        MachineError: the cache cannot be written.
    """
    if not len(samples):
        raise UserError("no samples to tokenise", hint="check the data with `dialoop data inspect`")
    key = json.dumps([LAYOUT, digest, template.digest, max_length, overlong, encoding])
    key = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = cache / f"rows-{key}"
    if (folder / "rows.json").exists():
        emit(Progress("tokenise", len(samples), len(samples), "rows", "from the cache"))
    else:
        work = _Work(template, encode, max_length, overlong)
        with new_folder(folder) as temporary, _Writer(temporary, key) as writer:
            for results in _results(samples, work, workers):
                writer.add(results)
                emit(Progress("tokenise", writer.num_samples, len(samples), "rows"))
            _refuse_if_empty(writer)
    rows = TokenRows(folder)
    _report(rows, max_length, emit)
    return rows


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker needs to know."""

    template: Template
    encode: Encode
    max_length: int
    overlong: Overlong


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of one sample: units, or a reason for having none."""

    origin: Origin | None
    units: list[Unit] = field(default_factory=list)
    reason: str = ""
    truncated: int = 0
    split: int = 0


class _Writer:
    """Appends results to the files of a folder; `rows.json`, written last, makes it whole."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder, self._digest = folder, digest
        self._starts = [0]
        self._units = [0]
        self._seconds: list[int] = []
        self._values: list[float] = []
        self._num_targets = 0
        self._truncated = self._split = 0
        self.num_samples = 0
        self.dropped: list[Dropped] = []

    def __enter__(self) -> _Writer:
        self._ids: BinaryIO = (self._folder / "ids.i32").open("wb")
        self._weights: BinaryIO = (self._folder / "weights.f32").open("wb")
        return self

    @property
    def num_rows(self) -> int:
        return len(self._starts) - 1

    def add(self, results: list[_Done]) -> None:
        for done in results:
            self.num_samples += 1
            self._truncated += done.truncated
            self._split += done.split
            if not done.units:
                self.dropped.append(Dropped(done.origin, done.reason))
            for unit in done.units:
                self._add(unit)

    def _add(self, unit: Unit) -> None:
        for row in unit.rows:
            row.ids.tofile(self._ids)
            row.weights.tofile(self._weights)
            self._starts.append(self._starts[-1] + len(row))
            self._seconds.append(row.second)
            self._num_targets += int(np.count_nonzero(row.weights))
        self._units.append(self.num_rows)
        self._values.append(unit.value)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ids.close()
        self._weights.close()
        if kind is not None:
            return
        np.asarray(self._starts, np.int64).tofile(self._folder / "starts.i64")
        np.asarray(self._units, np.int64).tofile(self._folder / "units.i64")
        np.asarray(self._seconds, np.int32).tofile(self._folder / "seconds.i32")
        np.asarray(self._values, np.float32).tofile(self._folder / "values.f32")
        facts = {
            "counts": {
                "samples": self.num_samples,
                "dropped": len(self.dropped),
                "truncated": self._truncated,
                "split": self._split,
            },
            "num_targets": self._num_targets,
            "digest": self._digest,
            "dropped": [
                [[item.origin.file, item.origin.line] if item.origin else None, item.reason]
                for item in self.dropped
            ],
        }
        text = json.dumps(facts, ensure_ascii=False)
        (self._folder / "rows.json").write_text(text, encoding="utf-8")


def _results(samples: Collection[Sample], work: _Work, workers: int) -> Iterator[list[_Done]]:
    """Results in the order of the samples, chunk by chunk."""
    chunks = _chunks(samples)
    if workers <= 1 or len(samples) <= FEW:
        for chunk in chunks:
            yield [_tokenize(sample, work) for sample in chunk]
        return
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    pool = ProcessPoolExecutor(
        min(workers, -(-len(samples) // CHUNK)),
        multiprocessing.get_context(method),
        _begin,
        (work,),
    )
    try:
        waiting = deque(pool.submit(_chunk, chunk) for chunk in islice(chunks, 3 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_chunk, chunk) for chunk in islice(chunks, 1))
    finally:
        pool.shutdown(cancel_futures=True)


_WORK: ContextVar[_Work] = ContextVar("work")
"""Within a worker process: what it was started with."""


def _begin(work: _Work) -> None:
    _WORK.set(work)


def _chunk(samples: list[Sample]) -> list[_Done]:
    work = _WORK.get()
    return [_tokenize(sample, work) for sample in samples]


def _chunks(samples: Collection[Sample]) -> Iterator[list[Sample]]:
    left = iter(samples)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _tokenize(sample: Sample, work: _Work) -> _Done:
    try:
        units = work.encode(sample, work.template)
    except UserError as error:
        return _Done(sample.origin, reason=str(error.args[0]))
    if not units:
        return _Done(sample.origin, reason="no assistant message with a loss weight above zero")
    out: list[Unit] = []
    truncated = split = 0
    for unit in units:
        if max(map(len, unit.rows)) <= work.max_length:
            out.append(unit)
        elif work.overlong == "truncate":
            truncated += 1
            out += _truncated(unit, work.max_length)
        elif work.overlong == "split":
            split += 1
            out += _split(unit, work.max_length)
        elif work.overlong == "error":
            raise _too_long(sample, unit, work)
    reason = "" if out else _why_empty(work)
    return _Done(sample.origin, out, reason, truncated, split)


def _truncated(unit: Unit, length: int) -> list[Unit]:
    """The unit with its rows cut off; nothing when a row loses all that it is there for."""
    rows = tuple(shortened(row, length) for row in unit.rows)
    whole = zip(rows, unit.rows, strict=True)
    return [Unit(rows, unit.value)] if all(_has_use(row, before) for row, before in whole) else []


def shortened(row: Row, length: int) -> Row:
    """A row without what is too much before the tokens that close it."""
    if not row.tail or len(row) <= length:
        return replace(_cut(row, length)[0], second=row.second)
    kept = np.r_[: max(0, length - row.tail), len(row) - row.tail : len(row)]
    return replace(row, ids=row.ids[kept], weights=row.weights[kept])


def _has_use(row: Row, before: Row) -> bool:
    has_texts = row.second < len(row) - row.tail
    return has_texts and bool(row.weights.any() or not before.weights.any())


def _split(unit: Unit, length: int) -> list[Unit]:
    """A unit for each piece of its one row that has targets."""
    (row,) = unit.rows
    return [Unit((part,), unit.value) for part in _cut(row, length) if part.weights.any()]


def _cut(row: Row, length: int) -> list[Row]:
    """Rows of at most `length` tokens, each read on its own: its first token is not predicted."""
    out: list[Row] = []
    for start in range(0, len(row), length):
        weights = row.weights[start : start + length].copy()
        weights[0] = 0
        out.append(Row(row.ids[start : start + length], weights))
    return out


def _why_empty(work: _Work) -> str:
    if work.overlong == "drop":
        return f"longer than {work.max_length} tokens"
    return f"no answer within its first {work.max_length} tokens"


def _too_long(sample: Sample, unit: Unit, work: _Work) -> DialoopError:
    where = f"{sample.origin.file}:{sample.origin.line}: " if sample.origin else ""
    return UserError(
        f"{where}{max(map(len, unit.rows))} tokens, more than max_length {work.max_length}",
        hint="raise max_length, or set overlong to drop, truncate or split",
    )


def _refuse_if_empty(writer: _Writer) -> None:
    if writer.num_rows:
        return
    reason, number = Counter(item.reason for item in writer.dropped).most_common(1)[0]
    raise UserError(
        f"none of the {writer.num_samples} samples can be trained on; {number} because: {reason}",
        hint="check the data with `dialoop data inspect`",
    )


def _report(rows: TokenRows, max_length: int, emit: Callable[[Event], None]) -> None:
    counts = rows.counts
    for reason, number in rows.reasons.items():
        emit(Note(f"dropped {number} of {counts.samples} samples: {reason}", "warning"))
    if counts.truncated:
        emit(Note(f"cut {counts.truncated} rows off at {max_length} tokens", "warning"))
    if counts.split:
        emit(Note(f"split {counts.split} rows at {max_length} tokens", "warning"))


def _mapped(path: Path, dtype: type[np.generic]) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")
