"""Collect: records from files through layouts and cleaners into a folder, counted one by one."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoop.chat.message import Image
from dialoop.core.errors import UserError
from dialoop.core.events import Progress
from dialoop.data import finish
from dialoop.data.columns import RecordError
from dialoop.data.formats import formats, recognise, to_row
from dialoop.data.read import EXCERPT_CHARS, Record, Rejected, Skipped, read
from dialoop.data.report import Example, Tally
from dialoop.data.sample import Origin, Sample, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dialoop.chat.message import Message
    from dialoop.core.events import Event
    from dialoop.data.cleaners import Cleaner
    from dialoop.data.formats import Format
    from dialoop.data.spec import Reading


class Collector:
    """Reads data sets into a folder: samples, their index, the report, what was left out."""

    def __init__(
        self,
        folder: Path,
        reading: Reading,
        cleaners: Sequence[Cleaner],
        emit: Callable[[Event], None],
    ) -> None:
        self._folder, self._reading, self._cleaners, self._emit = folder, reading, cleaners, emit
        self._formats = formats(reading.plugin)
        self._tally = Tally()
        self._index: list[tuple[int, int, int, int, int, int]] = []
        self._files: dict[str, int] = {}
        self._columns_seen: set[str] = set()
        self._position = 0
        self._told = 0.0

    def run(self, paths: list[Path]) -> None:
        """Read every path in order and write the folder."""
        with (
            (self._folder / "samples.jsonl").open("wb") as self._samples,
            (self._folder / "rejected.jsonl").open("w", encoding="utf-8") as self._rejected,
            (self._folder / "dropped.jsonl").open("w", encoding="utf-8") as self._dropped,
        ):
            for number, path in enumerate(paths):
                self._read_set(number, path)
        self._check_columns_seen()
        self._write_index()
        text = self._tally.report().model_dump_json()
        (self._folder / "report.json").write_text(text, encoding="utf-8")

    def _read_set(self, number: int, path: Path) -> None:
        reading = self._reading
        for item in read(path, encoding=reading.encoding, unit=reading.text_unit):
            if isinstance(item, Skipped):
                self._tally.skipped[item.file] = item.reason
            elif isinstance(item, Rejected):
                self._reject(item)
            else:
                self._take(number, item)
            self._progress(path)
        self._emit(Progress("read", len(self._index), len(self._index), "rows"))

    def _take(self, number: int, record: Record) -> None:
        try:
            layout, sample = self._recognise(record)
        except RecordError as error:
            excerpt = json.dumps(record.value, ensure_ascii=False)[:EXCERPT_CHARS]
            self._reject(Rejected(record.origin, error.reason, excerpt, error.detail))
            return
        if cleaned := self._clean(sample, record.origin):
            self._keep(number, layout, cleaned, record.origin)

    def _clean(self, sample: Sample, origin: Origin) -> Sample | None:
        """The sample as the cleaners leave it; None where one dropped it, which is counted."""
        original = sample
        for cleaner in self._cleaners:
            verdict = cleaner.look(sample)
            sample = verdict.sample
            if verdict.outcome in {"duplicates", "filtered"}:
                self._drop(origin, verdict.outcome, verdict.reason, verdict.detail, sample)
                return None
            if verdict.outcome == "changed":
                example = Example(file=origin.file, line=origin.line)
                self._tally.reason("changed", verdict.reason, example)
        if sample is not original and sample.messages:
            try:
                finish.check(sample.messages)
            except RecordError as error:
                self._drop(origin, "filtered", f"{error.reason} after cleaning", "", sample)
                return None
        return sample

    def _recognise(self, record: Record) -> tuple[Format, Sample]:
        if self._reading.columns:
            self._columns_seen.update(to_row(record.value, {}))
        row = to_row(record.value, self._reading.columns)
        layout = recognise(row, self._formats)
        try:
            sample = layout.read(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = f"layout `{layout.kind}` could not read it"
            raise RecordError(reason, f"{type(error).__name__}: {error}") from error
        return layout, _with_found_images(replace(sample, origin=record.origin), record.origin)

    def _keep(self, number: int, layout: Format, sample: Sample, origin: Origin) -> None:
        line = json.dumps(to_json(sample), ensure_ascii=False).encode() + b"\n"
        self._samples.write(line)
        file = self._files.setdefault(origin.file, len(self._files))
        entry = (self._position, file, origin.line, number, _number(line), _group(sample))
        self._index.append(entry)
        self._position += len(line)
        self._tally.count(origin.file, "kept")
        self._tally.layouts[layout.kind] += 1
        self._tally.kinds[sample.kind] += 1

    def _reject(self, item: Rejected) -> None:
        origin = item.origin
        reason = f"{item.reason}: {item.detail}" if item.detail else item.reason
        line = {"file": origin.file, "line": origin.line, "reason": reason[:500]}
        self._rejected.write(_json_line(line | {"excerpt": item.excerpt}))
        self._tally.count(origin.file, "rejected")
        example = Example(
            file=origin.file, line=origin.line, detail=item.detail[:200], excerpt=item.excerpt
        )
        self._tally.reason("rejected", item.reason, example)

    def _drop(self, origin: Origin, outcome: str, reason: str, detail: str, sample: Sample) -> None:
        row = {"file": origin.file, "line": origin.line, "outcome": outcome, "reason": reason}
        self._dropped.write(_json_line(row | {"detail": detail, "sample": to_json(sample)}))
        self._tally.count(origin.file, outcome)
        example = Example(file=origin.file, line=origin.line, detail=detail)
        self._tally.reason(outcome, reason, example)

    def _progress(self, path: Path) -> None:
        now = time.monotonic()
        if now - self._told > 0.2:
            self._told = now
            self._emit(Progress("read", len(self._index), None, "rows", path.name))

    def _check_columns_seen(self) -> None:
        for name in self._reading.columns:
            if name not in self._columns_seen:
                seen = ", ".join(sorted(self._columns_seen)[:20]) or "none"
                raise UserError(
                    f"columns: no record has a column `{name}`", hint=f"there are: {seen}"
                )

    def _write_index(self) -> None:
        names = ("offsets", "files", "lines", "sets", "hashes", "keys")
        table = np.array(self._index, dtype=np.int64).reshape(-1, len(names))
        columns = {name: table[:, n] for n, name in enumerate(names)}
        np.savez(self._folder / "index.npz", **columns)  # pyright: ignore[reportArgumentType]
        (self._folder / "files.json").write_text(_json_line(list(self._files)), encoding="utf-8")


def _json_line(value: Any) -> str:
    """One line of JSON that can be written whatever is in it: lone surrogates become U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", errors="replace").decode("utf-8") + "\n"


def _number(data: bytes) -> int:
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _group(sample: Sample) -> int:
    """Number of the dialogue that a sample belongs to: samples that open alike share it."""
    opening = [sample.text] if sample.text is not None else []
    for item in sample.query or sample.messages:
        if item.role == "assistant":
            break
        opening.append(item.text + "".join(i.source for i in item.images))
    return _number("\n".join(opening).encode("utf-8", errors="replace"))


def _with_found_images(sample: Sample, origin: Origin) -> Sample:
    """Pictures named relative to their data file, by a path that can be opened from anywhere."""
    every = (sample.messages, sample.query, *sample.rejected, *sample.positives, *sample.negatives)
    if not any(isinstance(p, Image) for items in every for item in items for p in item.parts):
        return sample
    folder = Path(origin.file.partition("!")[0]).parent

    def dialogue(items: tuple[Message, ...]) -> tuple[Message, ...]:
        if not any(item.images for item in items):
            return items
        return tuple(
            replace(
                item,
                parts=tuple(_found(p, folder) if isinstance(p, Image) else p for p in item.parts),
            )
            for item in items
        )

    return replace(
        sample,
        messages=dialogue(sample.messages),
        rejected=tuple(map(dialogue, sample.rejected)),
        query=dialogue(sample.query),
        positives=tuple(map(dialogue, sample.positives)),
        negatives=tuple(map(dialogue, sample.negatives)),
    )


def _found(image: Image, folder: Path) -> Image:
    if image.source.startswith(("data:", "http://", "https://")):
        return image
    beside = folder / image.source
    return Image(str(beside.resolve())) if beside.is_file() else image
