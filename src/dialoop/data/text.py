"""Bytes to lines: which encoding a file is in, and its lines, a damaged one at a time.

The encoding is decided on a stretch of the file that holds characters outside ASCII, line by line,
so that a few damaged lines in a UTF-8 file do not turn it into a GBK one. GBK is read as GB18030,
which contains it.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES = 1 << 18
Open = "Callable[[], BinaryIO]"


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line end; `text` is None where the bytes are not in the encoding."""

    number: int
    text: str | None
    raw: bytes


def is_binary(head: bytes) -> bool:
    """Whether the first bytes of a file are those of no text."""
    if head.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    if b"\0" in head:
        return _utf16_without_mark(head) is None
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\v\x1b" for byte in head)
    return controls > len(head) // 20


def detect(opener: Callable[[], BinaryIO], name: str, forced: str | None = None) -> str:
    """The codec to read a file with.

    Args:
        opener: opens the file's bytes from the start.
        name: what the user calls the file, for errors.
        forced: the encoding that the user named; checked, then obeyed.

    Raises:
        UserError: no such encoding, or the file is in none that we know or in another one.
    """
    with opener() as file:
        sample = _telling_part(file)
    if forced is not None:
        return _checked(forced, sample, name)
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in sample and (codec := _utf16_without_mark(sample)):
        return codec
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    if _num_readable(lines, "utf-8") * 2 >= len(lines):
        return "utf-8"
    if _num_readable(lines, "gb18030") * 2 >= len(lines) and _looks_chinese(lines):
        return "gb18030"
    raise UserError(
        f"`{name}` is in an encoding that we cannot tell (not UTF-8, UTF-16, GBK or GB18030)",
        hint="name it, as in `--encoding big5`, or save the file as UTF-8",
    )


def lines(opener: Callable[[], BinaryIO], codec: str) -> Iterator[Line]:
    """The lines of a file, numbered from 1; memory holds one line at a time."""
    with opener() as file:
        if codec.startswith(("utf-16", "utf-32")):
            yield from _wide_lines(file, codec)
            return
        for number, raw in enumerate(file, 1):
            body = raw.rstrip(b"\n")
            if number == 1:
                body = body.removeprefix(codecs.BOM_UTF8)
            try:
                text = body.decode("utf-8" if codec == "utf-8-sig" else codec)
            except UnicodeDecodeError:
                text = None
            yield Line(number, text, body)


def chunks(opener: Callable[[], BinaryIO], codec: str) -> Iterator[str]:
    """The text of a file in pieces; bytes that are not in the encoding become U+FFFD."""
    decoder = codecs.getincrementaldecoder(codec)(errors="replace")
    with opener() as file:
        while data := file.read(CHUNK_BYTES):
            yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def _wide_lines(file: BinaryIO, codec: str) -> Iterator[Line]:
    decoder = codecs.getincrementaldecoder(codec)(errors="replace")
    number, rest = 1, ""
    while True:
        data = file.read(CHUNK_BYTES)
        *whole, rest = (rest + decoder.decode(data, final=not data)).split("\n")
        if not data and rest:
            whole.append(rest)
        for text in whole:
            yield Line(number, None if "\ufffd" in text else text, text.encode())
            number += 1
        if not data:
            return


def _telling_part(file: BinaryIO) -> bytes:
    """The first stretch of whole lines that is not plain ASCII; the start of an ASCII file."""
    start = chunk = file.read(CHUNK_BYTES)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF8)):
        return start
    while chunk and chunk.isascii() and b"\0" not in chunk:
        chunk = file.read(CHUNK_BYTES)
    part = (chunk or start) + file.readline()
    if part[:CHUNK_BYTES] == start:
        return part
    _, _, after = part.partition(b"\n")
    return after if after and not after.isascii() else part


def _utf16_without_mark(sample: bytes) -> str | None:
    """ASCII in UTF-16 has a zero in every second byte."""
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    most, least = max(even, odd), min(even, odd)
    if most * 10 < len(sample) or least * 20 > most:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _checked(name: str, sample: bytes, file: str) -> str:
    try:
        codec = codecs.lookup(name).name
        " ".encode(codec).decode(codec)
    except (LookupError, TypeError) as error:
        raise UserError(
            f"unknown encoding `{name}`", hint="use utf-8, utf-16, gbk, gb18030 or big5"
        ) from error
    if codec in {"gbk", "gb2312"}:
        codec = "gb18030"
    if codec.startswith(("utf-16", "utf-32")):
        _check_wide(codec, name, sample, file)
        return codec
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    if lines and _num_readable(lines, codec) * 2 < len(lines):
        raise UserError(
            f"`{file}` is not {name}: most of its lines do not decode",
            hint="leave `--encoding` out to let it be found, or name another one",
        )
    return codec


def _check_wide(codec: str, name: str, sample: bytes, file: str) -> None:
    text = sample[: len(sample) // 4 * 4].decode(codec, errors="replace")
    marked = sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if "\n" not in text and not marked and b"\0" not in sample:
        raise UserError(
            f"`{file}` is not {name}: it has no byte-order mark and no zero bytes",
            hint="leave `--encoding` out to let it be found, or name another one",
        )


def _num_readable(lines: list[bytes], codec: str) -> int:
    count = 0
    for line in lines:
        try:
            line.removeprefix(codecs.BOM_UTF8).decode(codec)
        except UnicodeDecodeError:
            continue
        count += 1
    return count


def _looks_chinese(lines: list[bytes]) -> bool:
    """Whether most characters outside ASCII are everyday ones, those of GB 2312.

    Text in another East Asian encoding also decodes as GB 18030, into rare characters.
    """
    text = b"\n".join(lines).decode("gb18030", errors="replace")
    others = [char for char in text if char > "\x7f"]
    everyday = "".join(others).encode("gb2312", errors="ignore").decode("gb2312")
    return len(everyday) * 10 >= len(others) * 6
