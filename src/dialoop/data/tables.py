"""Tables: rows of CSV and TSV with any delimiter and quoted cells, and of Parquet."""

from __future__ import annotations

import base64
import csv
import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from dialoop.core.errors import MachineError, UserError
from dialoop.data import columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dialoop.data.text import Line

DELIMITERS = (",", "\t", ";", "|")
MAX_ROW_LINES = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its cells by column, or the reason why it has none."""

    line: int
    """Where it begins."""
    cells: dict[str, str | None]
    raw: str = ""
    reason: str = ""
    detail: str = ""


def looks_like_table(head: str) -> bool:
    """Whether a text begins with a header that holds a column name that we know."""
    first = head.lstrip("\ufeff\r\n").split("\n", 1)[0].rstrip("\r")
    try:
        cells = _split(first, _delimiter(first))
    except csv.Error:  # a quote that is not closed: no header
        return False
    return len(cells) > 1 and any(columns.is_known(cell) for cell in cells)


def csv_rows(lines: Iterator[Line], head: str) -> Iterator[Row]:
    """Rows of a delimited file. Empty cells are None; a first row that is no header is data."""
    delimiter = _delimiter(head.lstrip("\ufeff\r\n").split("\n", 1)[0].rstrip("\r"))
    header: list[str] | None = None
    for first, raw, whole in _logical_rows(lines, delimiter):
        if whole is None:
            yield Row(first, {}, raw, "not CSV", "a quote is not closed")
            continue
        try:
            cells = _split(whole, delimiter)
        except csv.Error as error:
            yield Row(first, {}, raw, "not CSV", str(error))
            continue
        if header is None:
            named = _is_header(cells)
            header = cells if named else [f"column{n}" for n in range(1, len(cells) + 1)]
            if named:
                continue
        yield _row(first, raw, header, cells)


def _row(first: int, raw: str, header: list[str], cells: list[str]) -> Row:
    if "\ufffd" in raw:
        return Row(first, {}, raw, "bytes that are not in the file's encoding")
    while len(cells) > len(header) and not cells[-1]:
        cells = cells[:-1]
    if len(cells) != len(header):
        detail = f"{len(cells)} cells, the header has {len(header)}"
        return Row(first, {}, raw, "wrong number of cells", detail)
    return Row(first, {k: v or None for k, v in zip(header, cells, strict=True)}, raw)


def _delimiter(header: str) -> str:
    outside = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=outside.count)


def _split(line: str, delimiter: str) -> list[str]:
    csv.field_size_limit(1 << 30)
    quoted = _has_quoted_cell(line, delimiter)
    style = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    rows = csv.reader([line], delimiter=delimiter, quoting=style, strict=quoted)
    if not quoted:
        return next(rows, [])
    parsed = list(csv.reader(line.splitlines(keepends=True), delimiter=delimiter, strict=True))
    return parsed[0] if parsed else []


def _has_quoted_cell(line: str, delimiter: str) -> bool:
    return re.search(rf'(^|{re.escape(delimiter)})"', line) is not None


def _logical_rows(lines: Iterator[Line], delimiter: str) -> Iterator[tuple[int, str, str | None]]:
    """(first line, text, whole row): lines joined while a quoted cell goes on.

    A quote that is never closed costs its own line: the lines behind it are looked at again.
    """
    pending: list[Line] = []
    while True:
        line = pending.pop(0) if pending else next(lines, None)
        if line is None:
            return
        joined = _shown(line)
        if not joined.strip("\r"):
            continue
        taken: list[Line] = []
        while _is_open(joined, delimiter) and len(taken) < MAX_ROW_LINES:
            more = pending.pop(0) if pending else next(lines, None)
            if more is None:
                break
            taken.append(more)
            joined += "\n" + _shown(more)
        if _is_open(joined, delimiter):
            pending = taken + pending
            yield line.number, _shown(line), None
        else:
            yield line.number, joined, joined.rstrip("\r").replace("\r\n", "\n")


def _shown(line: Line) -> str:
    return line.text if line.text is not None else line.raw.decode("utf-8", errors="replace")


def _is_open(text: str, delimiter: str) -> bool:
    return text.count('"') % 2 == 1 and _has_quoted_cell(text, delimiter)


def _is_header(cells: list[str]) -> bool:
    if any(columns.is_known(cell) for cell in cells):
        return True
    names = [cell.strip() for cell in cells]
    short = all(0 < len(name) <= 40 and not name[0].isdigit() for name in names)
    return short and len(set(names)) == len(names)


def parquet_rows(opener: Callable[[], BinaryIO], name: str) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as plain JSON values; bytes become base64.

    Raises:
        MachineError: pyarrow is not installed.
        UserError: the file is damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MachineError(
            "reading Parquet needs the package pyarrow", hint='run: pip install "dialoop[data]"'
        ) from error
    with opener() as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=256):
                yield from (_plain(row) for row in batch.to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"`{name}` is damaged: {error}", hint="copy it again") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
