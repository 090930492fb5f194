"""Read JSON, JSON Lines, CSV, TSV, Parquet and text, also gzipped, zipped and in folders.

What a file holds is told from its content, not its name. Memory holds a record at a time. Whatever
is damaged costs its own line, and comes out as `Rejected` with its place and the reason.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from dialoop.core.errors import MachineError, UserError
from dialoop.data import jsonstream, tables, text
from dialoop.data.jsonstream import Damaged
from dialoop.data.sample import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TextUnit = Literal["auto", "line", "document"]
EXCERPT_CHARS = 2000
DATA_SUFFIXES = (
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".parquet", ".gz", ".zip", ".zst",
)  # fmt: skip
_HEAD_BYTES = 1 << 18
_WRAPPERS = {"data", "rows", "records", "examples", "items", "train"}


@dataclass(frozen=True, slots=True)
class Record:
    """One decoded record."""

    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be used."""

    origin: Origin
    reason: str
    """The kind of fault, the same words for the same fault."""
    excerpt: str = ""
    """The start of the record as it was written."""
    detail: str = ""
    """What is particular about this one."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file of a folder or an archive that holds no records."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of one file, wherever they lie."""

    name: str
    """Path, with `!member` for what lies in an archive."""
    open: Callable[[], BinaryIO]
    alone: bool
    """Whether the user named this very file, so that an unreadable one is an error."""


Item = Record | Rejected | Skipped


def read(path: Path, *, encoding: str | None = None, unit: TextUnit = "auto") -> Iterator[Item]:
    """Every record under a path, in order: files of a folder by name, members of an archive.

    Args:
        path: a file or a folder.
        encoding: the codec of every text file; None finds it for each.
        unit: what one record of a plain text file is; `auto` takes a Markdown file whole and any
            other line by line.

    Raises:
        UserError: nothing is there, a named file is empty, binary or in an unknown encoding.
    """
    if not path.exists():
        raise UserError(f"no such file or folder: `{path}`", hint="check the path")
    if path.is_dir():
        found = False
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            if any(part.startswith(".") for part in file.relative_to(path).parts):
                continue
            if file.suffix.lower() not in DATA_SUFFIXES:
                yield Skipped(str(file), "not a data file by its name")
                continue
            found = True
            yield from _read_source(Source(str(file), partial(_open, file), False), encoding, unit)
        if not found:
            raise UserError(
                f"no data file in folder `{path}`", hint=f"known: {' '.join(DATA_SUFFIXES)}"
            )
        return
    yield from _read_source(Source(str(path), partial(_open, path), True), encoding, unit)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except PermissionError as error:
        raise MachineError(
            f"no permission to read `{path}`", hint="change its owner or mode"
        ) from error


def _read_source(source: Source, encoding: str | None, unit: TextUnit) -> Iterator[Item]:
    with source.open() as file:
        head = _peek(file, source)
    if head.startswith(b"\x1f\x8b"):
        inner = partial(_open_gzip, source.open)
        yield from _read_source(Source(source.name, inner, source.alone), encoding, unit)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        inner = partial(_open_zstd, source.open)
        yield from _read_source(Source(source.name, inner, source.alone), encoding, unit)
    elif head.startswith(b"PK\x03\x04"):
        yield from _read_zip(source, encoding, unit)
    elif head.startswith(b"PAR1"):
        yield from _read_parquet(source)
    elif not head.strip():
        yield from _unusable(source, "is empty", "give a file with records in it")
    elif text.is_binary(head):
        hint = "give JSON, JSON Lines, CSV, TSV, Parquet or plain text"
        yield from _unusable(source, "is a binary file, not data that we know", hint)
    else:
        yield from _read_text(source, encoding, unit)


def _peek(file: BinaryIO, source: Source) -> bytes:
    try:
        return file.read(_HEAD_BYTES)
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        raise UserError(f"`{source.name}` is damaged: {error}", hint="copy it again") from error


def _unusable(source: Source, what: str, hint: str) -> Iterator[Item]:
    if source.alone:
        raise UserError(f"`{source.name}` {what}", hint=hint)
    yield Skipped(source.name, what)


class _Gzip(gzip.GzipFile):
    """Closes the file below as well."""

    def __init__(self, below: BinaryIO) -> None:
        self._below = below
        super().__init__(fileobj=below)

    def close(self) -> None:
        super().close()
        self._below.close()


def _open_gzip(outer: Callable[[], BinaryIO]) -> BinaryIO:
    return cast("BinaryIO", _Gzip(outer()))


def _open_zstd(outer: Callable[[], BinaryIO]) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        raise MachineError(
            "reading Zstandard files needs the package zstandard",
            hint='run: pip install "dialoop[data]"',
        ) from error
    reader = zstandard.ZstdDecompressor().stream_reader(outer(), closefd=True)
    return cast("BinaryIO", io.BufferedReader(cast("Any", reader)))


def _read_zip(source: Source, encoding: str | None, unit: TextUnit) -> Iterator[Item]:
    with source.open() as file, _open_zip(file, source.name) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        for info in members:
            name = f"{source.name}!{info.filename}"
            if info.filename.startswith("__MACOSX/") or info.flag_bits & 1:
                yield Skipped(name, "encrypted" if info.flag_bits & 1 else "made by macOS")
                continue
            opener = partial(archive.open, info)
            inner = Source(name, cast("Any", opener), source.alone and len(members) == 1)
            yield from _read_source(inner, encoding, unit)


def _open_zip(file: BinaryIO, name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise UserError(f"`{name}` is damaged: {error}", hint="copy it again") from error


def _read_parquet(source: Source) -> Iterator[Item]:
    for number, row in enumerate(tables.parquet_rows(source.open, source.name), 1):
        yield Record(row, Origin(source.name, number))


def _read_text(source: Source, encoding: str | None, unit: TextUnit) -> Iterator[Item]:
    codec = text.detect(source.open, source.name, encoding)
    head = _head_text(source, codec)
    shape = _shape(head, source.name)
    if shape == "lines":
        yield from _read_lines(source, codec)
    elif shape == "json":
        yield from _read_json(source, codec)
    elif shape == "table":
        yield from _read_table(source, codec, head)
    else:
        yield from _read_plain(source, codec, unit)


def _head_text(source: Source, codec: str) -> str:
    pieces = text.chunks(source.open, codec)
    return next(pieces, "").lstrip("\ufeff")


def _suffix(name: str) -> str:
    """The suffix that tells the kind: `.jsonl` of `a.jsonl.gz`."""
    suffixes = [s for s in Path(name).suffixes if s.lower() not in {".gz", ".zst"}]
    return suffixes[-1].lower() if suffixes else ""


def _shape(head: str, name: str) -> Literal["lines", "json", "table", "plain"]:
    start = head.lstrip()[:1]
    suffix = _suffix(name)
    if start in {"{", "["} and suffix not in {".md"}:
        whole = [line for line in head.splitlines()[:200] if line.strip()]
        good = sum(_is_json_record(line) for line in whole)
        if len(whole) == 1 and good:
            return "lines" if _is_one_record(whole[0]) else "json"
        if good * 2 >= len(whole) or (suffix in {".jsonl", ".ndjson"} and good):
            return "lines"
        if suffix in {".json", ".jsonl", ".ndjson"} or _starts_json(head):
            return "json"
    if suffix in {".jsonl", ".ndjson"}:
        return "lines"
    if suffix == ".json":
        return "lines" if any(_is_json_record(x) for x in head.splitlines()[:200]) else "json"
    if suffix in {".csv", ".tsv"} or tables.looks_like_table(head):
        return "table"
    return "plain"


def _is_json_record(line: str) -> bool:
    try:
        return isinstance(jsonstream.loads(line), dict | list)
    except ValueError:
        return False


def _is_one_record(line: str) -> bool:
    """Whether a file of one line is one record: an object of scalars and lists, or messages."""
    value = jsonstream.loads(line)
    if isinstance(value, dict):
        return not _is_keyed(value)
    return bool(value) and all(isinstance(v, dict) and "role" in v for v in value)


def _starts_json(head: str) -> bool:
    """Tell `[` of JSON from `[` of prose: a value or a key follows."""
    after = head.lstrip()[1:].lstrip()[:1]
    return after in {'"', "{", "[", "]", "}", ""}


def _read_lines(source: Source, codec: str) -> Iterator[Item]:
    for line in text.lines(source.open, codec):
        origin = Origin(source.name, line.number)
        if line.text is None:
            yield _bad_bytes(origin, line, codec)
            continue
        if not line.text.strip():
            continue
        try:
            yield Record(jsonstream.loads(line.text.strip()), origin)
        except ValueError as error:
            excerpt = line.text[:EXCERPT_CHARS]
            yield Rejected(origin, "not JSON", excerpt, str(error))


def _bad_bytes(origin: Origin, line: text.Line, codec: str) -> Rejected:
    name = codec.removesuffix("-sig")
    excerpt = line.raw.decode(name, errors="replace")[:EXCERPT_CHARS]
    return Rejected(origin, f"bytes that are not {name}", excerpt)


def _read_json(source: Source, codec: str) -> Iterator[Item]:
    """One JSON value a file; `Origin.line` is then the number of the record."""
    stream = jsonstream.Stream(text.chunks(source.open, codec))
    values = jsonstream.elements(stream) if stream.peek() == "[" else _of_object(stream)
    number = 0
    for number, value in enumerate(values, 1):
        origin = Origin(source.name, number)
        if isinstance(value, Damaged):
            yield Rejected(origin, "not JSON", value.text[:EXCERPT_CHARS], value.reason)
        else:
            yield Record(value, origin)
    if rest := stream.peek():
        yield Rejected(Origin(source.name, number + 1), "not JSON", rest, "text after the value")


def _is_keyed(value: dict[str, Any]) -> bool:
    """Whether an object maps ids to records."""
    return bool(value) and all(isinstance(v, dict) for v in value.values())


def _of_object(stream: jsonstream.Stream) -> Iterator[Any]:
    """The records of an object: of ids to records, or with a list of them under `data`."""
    one: dict[str, Any] = {}
    keyed = False
    for key, value in jsonstream.members(stream):
        if isinstance(value, Damaged):
            yield value
        elif not one and isinstance(value, dict):
            keyed = True
            yield {"id": key} | value
        elif not one and not keyed and key in _WRAPPERS and isinstance(value, list):
            yield from value
            keyed = True
        elif not keyed:
            one[key] = value
    if one:
        yield one


def _read_table(source: Source, codec: str, head: str) -> Iterator[Item]:
    lines = text.lines(source.open, codec)
    for row in tables.csv_rows(lines, head):
        origin = Origin(source.name, row.line)
        if row.reason:
            yield Rejected(origin, row.reason, row.raw[:EXCERPT_CHARS], row.detail)
        else:
            yield Record(row.cells, origin)


def _read_plain(source: Source, codec: str, unit: TextUnit) -> Iterator[Item]:
    if unit == "document" or (unit == "auto" and _suffix(source.name) == ".md"):
        whole = "".join(text.chunks(source.open, codec)).lstrip("\ufeff").replace("\r\n", "\n")
        if "\ufffd" in whole:
            yield Rejected(Origin(source.name, 1), f"bytes that are not {codec}", whole[:200])
        else:
            yield Record({"text": whole}, Origin(source.name, 1))
        return
    for line in text.lines(source.open, codec):
        origin = Origin(source.name, line.number)
        if line.text is None:
            yield _bad_bytes(origin, line, codec)
        elif line.text.strip():
            yield Record({"text": line.text.rstrip("\r")}, origin)
