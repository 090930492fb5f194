"""Multiple-choice questions in the layouts of MMLU, C-Eval and CMMLU, and as JSON Lines.

MMLU: CSV without header, `question,A,B,C,D,answer`; C-Eval: `id,question,A,B,C,D,answer` and
sometimes `explanation`; CMMLU: a number, `Question,A,B,C,D,Answer`. The file's name gives subject
and split (`astronomy_dev.csv`, or `dev/astronomy.csv`). JSON Lines: `question`, `choices` as a list
(or `A`, `B`, ...), `answer` as a letter or a number from 0, and `subject`.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UserError
from dialoop.data import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LETTERS = "ABCDEFGHIJ"
SPLITS = ("dev", "val", "test", "train")


@dataclass(frozen=True, slots=True)
class Choice:
    """One question with its options."""

    id: str
    subject: str
    split: str
    """`dev`, `val`, `test`, `train`, or empty."""
    question: str
    options: tuple[str, ...]
    answer: str
    """A letter."""

    @property
    def letters(self) -> str:
        """One for each option."""
        return LETTERS[: len(self.options)]


def load_choices(files: Iterable[str]) -> list[Choice]:
    """The questions of files, folders and zip archives, in the order of their names.

    Raises:
        UserError: a file is missing, or is in none of the layouts.
    """
    found = [choice for file in files for choice in _load(Path(file))]
    if not found:
        raise UserError("task choice: no questions in `files`", hint="give CSV or JSON Lines files")
    return found


def _load(path: Path) -> Iterator[Choice]:
    if not path.exists():
        raise UserError(f"task choice: no such file or folder: `{path}`", hint="check the path")
    if path.is_dir():
        inner = (p for p in path.rglob("*") if p.suffix in {".csv", ".jsonl", ".zip"})
        for file in sorted(inner):
            yield from _load(file)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".csv", ".jsonl")) and not name.startswith("__MACOSX/"):
                    yield from _parse(PurePath(name), archive.read(name), f"{path}!{name}")
    else:
        yield from _parse(path, path.read_bytes(), str(path))


def _parse(path: PurePath, data: bytes, where: str) -> Iterator[Choice]:
    codec = text.detect(lambda: io.BytesIO(data), where)
    content = data.decode(codec).lstrip("\ufeff")
    subject, split = _named(path)
    rows = _objects(content, where) if path.suffix == ".jsonl" else _cells(content)
    for number, row in enumerate(rows, 1):
        place = f"{where}, row {number}"
        options, answer = _options(row), str(row.get("answer", "")).strip()
        if answer.isdigit() and int(answer) < len(options):
            answer = LETTERS[int(answer)]
        question = str(row.get("question") or "").strip()
        if not question or len(options) < 2 or answer not in LETTERS[: len(options)] or not answer:
            raise UserError(
                f"task choice: {place}: no question with options and an answer among them",
                hint="columns are question, A, B, C, D and answer, with or without a header",
            )
        topic = str(row.get("subject") or subject)
        name = f"{topic}/{row['id']}" if row.get("id") else f"{topic}/{split or 'row'} {number}"
        yield Choice(name, topic, split, question, options, answer)


def _cells(content: str) -> list[dict[str, Any]]:
    rows = [row for row in csv.reader(io.StringIO(content, newline="")) if any(row)]
    if not rows:
        return []
    names = [cell.strip().lower() for cell in rows[0]]
    if "question" in names and "answer" in names:
        return [dict(zip(names, row, strict=False)) for row in rows[1:]]
    names = ["question", *LETTERS[: len(rows[0]) - 2].lower(), "answer"]
    return [dict(zip(names, row, strict=False)) for row in rows]


def _objects(content: str, where: str) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"task choice: `{where}` is not JSON Lines: {error}") from error
    return [{str(k).lower(): v for k, v in row.items()} for row in rows if isinstance(row, dict)]


def _options(row: dict[str, Any]) -> tuple[str, ...]:
    if isinstance(row.get("choices"), list):
        return tuple(str(item).strip() for item in row["choices"])
    listed: list[str] = []
    for letter in LETTERS.lower():
        if row.get(letter) in (None, ""):
            break
        listed.append(str(row[letter]).strip())
    return tuple(listed)


def _named(path: PurePath) -> tuple[str, str]:
    stem, _, last = path.stem.rpartition("_")
    if last in SPLITS:
        return stem, last
    return path.stem, path.parent.name if path.parent.name in SPLITS else ""
