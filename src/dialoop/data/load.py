"""From data sets by name to samples on disk: read, recognise, clean, count, mix and split.

What was read is kept in a folder of the cache under a key of the files and the settings, so that
the same request is answered from disk; memory holds a few numbers a row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dialoop
from dialoop.core import env
from dialoop.core.errors import UserError
from dialoop.core.events import Note, Stage
from dialoop.core.files import new_folder, sha256
from dialoop.data import catalog, mix
from dialoop.data.cleaners.controls import StripControls
from dialoop.data.cleaners.duplicates import Exact, Near
from dialoop.data.cleaners.language import Language
from dialoop.data.cleaners.length import Length
from dialoop.data.cleaners.looping import DropLooping
from dialoop.data.cleaners.pii import Pii
from dialoop.data.collect import Collector
from dialoop.data.columns import FIELDS
from dialoop.data.report import DataReport
from dialoop.data.samples import SampleSet
from dialoop.data.spec import Cleaning, DataSpec, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event
    from dialoop.data.cleaners import Cleaner

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a data spec came to."""

    train: SampleSet
    validation: SampleSet
    """Empty when nothing was held out."""
    report: DataReport
    rejected: Path
    """JSON Lines of rejected rows: file, line, reason, excerpt."""
    dropped: Path
    """JSON Lines of duplicate and filtered rows, with their outcome."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What reading came to, before mixing and splitting."""

    folder: Path
    report: DataReport

    @property
    def rejected(self) -> Path:
        """JSON Lines of rejected rows: file, line, reason, excerpt."""
        return self.folder / "rejected.jsonl"

    @property
    def dropped(self) -> Path:
        """JSON Lines of duplicate and filtered rows, with their outcome."""
        return self.folder / "dropped.jsonl"


def load(
    spec: DataSpec,
    emit: Callable[[Event], None],
    *,
    count_tokens: Callable[[str], int] | None = None,
    tokenizer_digest: str = "",
) -> Loaded:
    """Read, clean, mix and split data.

    Args:
        spec: what to load.
        emit: receives progress.
        count_tokens: tokens of a text; needed only for length bounds in tokens.
        tokenizer_digest: identity of that tokenizer, for the cache.

    Raises:
        UserError: a data set is missing, unreadable, or gives no usable row.
        MachineError: a package is missing, or a hub is out of reach.
    """
    return choose(spec, gather(spec, emit, count_tokens, tokenizer_digest))


def gather(
    spec: DataSpec,
    emit: Callable[[Event], None],
    count_tokens: Callable[[str], int] | None = None,
    tokenizer_digest: str = "",
) -> Gathered:
    """Read and clean every data set of a spec, or find it in the cache; arguments as for `load`."""
    emit(Stage("Read data"))
    held_out = spec.validation if isinstance(spec.validation, list) else []
    names = [*spec.dataset, *held_out]
    folder = _read_all(names, spec, spec.cleaning, emit, count_tokens, tokenizer_digest)
    report = DataReport.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
    for reason in report.reasons:
        if reason.outcome != "changed":
            emit(Note(f"{reason.count} rows {reason.outcome}: {reason.reason}", "warning"))
    return Gathered(folder, report)


def choose(spec: DataSpec, data: Gathered) -> Loaded:
    """Mix and split what was gathered.

    Raises:
        UserError: a data set gives no usable row, or weights and shares are not ones.
    """
    with np.load(data.folder / "index.npz") as index:
        train, validation = _rows(spec, index, len(spec.dataset))
    return Loaded(
        SampleSet(data.folder, train),
        SampleSet(data.folder, validation),
        data.report,
        data.rejected,
        data.dropped,
    )


def _rows(spec: DataSpec, index: Any, num_train_sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training and the validation set."""
    sets, keys = index["sets"], index["keys"]
    rng = np.random.default_rng(spec.seed)
    chosen = [_count_of(name)[1] for name in spec.dataset]
    picked: list[np.ndarray] = []
    for number, count in enumerate(chosen):
        rows = np.flatnonzero(sets == number)
        if not len(rows):
            raise UserError(
                f"`{spec.dataset[number]}` gives no usable row",
                hint=f"see why with `dialoop data inspect {_count_of(spec.dataset[number])[0]}`",
            )
        picked.append(rows if count is None else rows[mix.take(len(rows), count, rng)])
    if spec.weights:
        sizes = mix.shares([len(rows) for rows in picked], spec.weights)
        picked = [r[mix.take(len(r), n, rng)] for r, n in zip(picked, sizes, strict=True)]
    train = np.concatenate(picked)
    if isinstance(spec.validation, list):
        return train, np.flatnonzero(sets >= num_train_sets)
    if not 0 <= spec.validation <= 0.5:
        raise UserError(f"validation: {spec.validation} is not a share of 0 to 0.5")
    unique = np.unique(train)
    held = unique[mix.split(keys[unique], spec.validation, spec.seed)]
    return train[~np.isin(train, held)], held


def _count_of(name: str) -> tuple[str, int | None]:
    """(`data.json`, 500) of `data.json#500`."""
    path, mark, count = name.rpartition("#")
    if mark and count.isdigit() and not Path(name).exists():
        if int(count) == 0:
            raise UserError(f"`{name}` asks for 0 rows", hint="give a number of 1 or more")
        return path, int(count)
    return name, None


def _read_all(
    names: list[str],
    reading: Reading,
    cleaning: Cleaning,
    emit: Callable[[Event], None],
    count_tokens: Callable[[str], int] | None,
    tokenizer_digest: str,
) -> Path:
    """The cache folder of these data sets, made where it is not there yet."""
    _check_columns(reading)
    paths = [catalog.resolve(_count_of(name)[0], emit) for name in names]
    key = _key(paths, reading, cleaning, tokenizer_digest)
    folder = env.home() / "data" / key
    if (folder / "report.json").exists():
        emit(Note("data: read before, taken from the cache"))
        return folder
    cleaners = build_cleaners(cleaning, count_tokens)
    with new_folder(folder) as made:
        Collector(made, reading, cleaners, emit).run(paths)
    return folder


def _check_columns(reading: Reading) -> None:
    for name, field in reading.columns.items():
        if field not in FIELDS:
            raise UserError(
                f"columns.{name}: no layout knows a field `{field}`",
                hint=f"use one of {', '.join(FIELDS)}",
            )


def _key(paths: list[Path], reading: Reading, cleaning: Cleaning, tokenizer: str) -> str:
    """Identity of a request: files by path, size and time; settings; versions."""
    plan = Reading(**{name: getattr(reading, name) for name in Reading.model_fields})
    plugin = sha256(reading.plugin) if reading.plugin and reading.plugin.is_file() else ""
    facts = [dialoop.__version__, str(FORMAT_VERSION), plan.model_dump_json(), plugin]
    facts += [cleaning.model_dump_json(), tokenizer]
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.exists():
                state = file.stat()
                facts.append(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}")
        facts.append("|")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def build_cleaners(cleaning: Cleaning, count_tokens: Callable[[str], int] | None) -> list[Cleaner]:
    """The cleaners that are asked for: first what changes a sample, then what drops it.

    Raises:
        UserError: a bound in tokens without a tokenizer.
    """
    out: list[Cleaner] = []
    if cleaning.strip_controls:
        out.append(StripControls())
    if cleaning.pii != "off":
        out.append(Pii(mask=cleaning.pii == "mask"))
    if cleaning.min_chars is not None or cleaning.max_chars is not None:
        out.append(Length("characters", len, cleaning.min_chars, cleaning.max_chars))
    if cleaning.min_tokens is not None or cleaning.max_tokens is not None:
        if count_tokens is None:
            raise UserError(
                "cleaning: a bound in tokens needs a tokenizer",
                hint="give `--model DIR`, or bounds in characters",
            )
        out.append(Length("tokens", count_tokens, cleaning.min_tokens, cleaning.max_tokens))
    if cleaning.languages:
        out.append(Language(list(cleaning.languages), cleaning.min_language_share))
    if cleaning.drop_looping:
        out.append(DropLooping())
    if cleaning.dedupe != "off":
        out.append(Exact())
    if cleaning.dedupe == "near":
        out.append(Near(cleaning.near_similarity))
    return out
