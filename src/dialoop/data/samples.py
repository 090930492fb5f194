"""SampleSet: samples on disk, by number; what training and conversion iterate over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from dialoop.data.sample import Origin, Sample, from_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class SampleSet(Collection[Sample]):
    """Samples on disk, by number; a sized, repeatable sequence.

    Args:
        folder: what `collect.Collector` wrote.
        rows: numbers of the rows that belong to this set, in order, repeats allowed.
    """

    def __init__(self, folder: Path, rows: np.ndarray) -> None:
        self._folder = folder
        self._rows = rows
        with np.load(folder / "index.npz") as index:
            self._offsets, self._hashes = index["offsets"], index["hashes"]
            self._files, self._lines = index["files"], index["lines"]
        self._names: list[str] = json.loads((folder / "files.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        with (self._folder / "samples.jsonl").open("rb") as file:
            for row in self._rows:
                file.seek(self._offsets[row])
                yield self._sample(int(row), file.readline())

    def __getitem__(self, number: int) -> Sample:
        row = int(self._rows[number])
        return self._sample(row, self._line(row))

    def __contains__(self, sample: object) -> bool:
        return any(sample == item for item in self)

    @property
    def digest(self) -> str:
        """Hash of what the set holds, in order; origins do not count."""
        return hashlib.sha256(self._hashes[self._rows].tobytes()).hexdigest()

    def raw_lines(self) -> Iterator[bytes]:
        """The canonical JSON of every sample, a line each with its end."""
        with (self._folder / "samples.jsonl").open("rb") as file:
            for row in self._rows:
                file.seek(self._offsets[row])
                yield file.readline()

    def _line(self, row: int) -> bytes:
        with (self._folder / "samples.jsonl").open("rb") as file:
            file.seek(self._offsets[row])
            return file.readline()

    def origin(self, number: int) -> Origin:
        """Where a sample was read, without reading it again."""
        return self._origin(int(self._rows[number]))

    def _origin(self, row: int) -> Origin:
        return Origin(self._names[self._files[row]], int(self._lines[row]))

    def _sample(self, row: int, line: bytes) -> Sample:
        return from_json(json.loads(line), self._origin(row))
