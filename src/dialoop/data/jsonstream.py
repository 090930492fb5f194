"""JSON read piece by piece: the records of one large array or object, in constant memory.

A record is decoded by the standard decoder as soon as the buffer holds it whole. Where it does not
decode, brackets are matched to find where it ends; a damaged record costs itself only, as long as
its brackets match or the next record begins a line of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RECORD_CHARS = 1 << 28
_SPACE = re.compile(r"[\s\ufeff]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Damaged:
    """Text that is not the JSON that it should be."""

    reason: str
    text: str


def loads(text: str) -> Any:
    """Decode one JSON text.

    Raises:
        ValueError: not JSON; NaN and Infinity are not, and half a character is not text.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check_surrogates(text, value)
    return value


class Stream:
    """A window on a text that arrives in pieces.

    Args:
        pieces: the text, in order.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._buffer = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            found = _SPACE.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(1):
                return ""

    def take(self) -> str:
        """The next character that is not white space, consumed."""
        char = self.peek()
        self._at += len(char)
        return char

    def value(self) -> Any:
        """Decode the next value; `Damaged` where it is not JSON."""
        self.peek()
        wanted = 1 << 16
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or self._ended:
                    text = self._buffer[self._at : end]
                    self._at = end
                    _check_surrogates(text, value)
                    return value
            except (ValueError, RecursionError) as error:
                end = self._close()
                if end is not None or self._ended or len(self._buffer) > MAX_RECORD_CHARS:
                    return self._skip(end, f"not JSON: {_short(error)}")
            self._more(wanted)
            wanted *= 2

    def _skip(self, end: int | None, reason: str) -> Damaged:
        """Leave a damaged value: at its end, else at the next line that begins like it did."""
        start = self._at
        if end is None:
            indent = self._buffer.rfind("\n", 0, start) + 1
            lead = self._buffer[indent:start]
            opening = "\n" + lead + self._buffer[start : start + 1]
            found = -1 if lead.strip() else self._buffer.find(opening, start + 1)
            end = len(self._buffer) if found < 0 else found
            self._at = end
            return Damaged(reason, self._buffer[start:end].rstrip().removesuffix(","))
        self._at = end
        return Damaged(reason, self._buffer[start:end])

    def _close(self) -> int | None:
        """Where the brackets that open here close; None if they do not in the buffer."""
        if self._buffer[self._at : self._at + 1] not in {"{", "["}:
            found = re.compile(r"[,\]}\n]").search(self._buffer, self._at + 1)
            return found.start() if found else None
        depth = 0
        for token in _TOKEN.finditer(self._buffer, self._at):
            char = token.group()
            if char == '"':
                return None
            if char in {"{", "["}:
                depth += 1
            elif char in {"}", "]"}:
                depth -= 1
                if depth == 0:
                    return token.end()
        return None

    def _more(self, wanted: int) -> bool:
        """Drop what was consumed and append at least `wanted` characters if there are any."""
        parts = [self._buffer[max(self._at - 256, 0) :]]
        self._at -= max(self._at - 256, 0)
        size = 0
        while size < wanted and not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            parts.append(piece)
            size += len(piece)
        self._buffer = "".join(parts)
        return size > 0


def elements(stream: Stream) -> Iterator[Any]:
    """The elements of an array whose `[` is next."""
    stream.take()
    while (char := stream.peek()) not in {"]", ""}:
        if char == ",":
            stream.take()
            continue
        yield stream.value()
    if stream.take() == "":
        yield Damaged("the array is not closed", "")


def members(stream: Stream) -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of an object whose `{` is next; damage comes as the value."""
    stream.take()
    while (char := stream.peek()) not in {"}", ""}:
        if char == ",":
            stream.take()
            continue
        key = stream.value()
        if not isinstance(key, str) or stream.peek() != ":":
            yield "", key if isinstance(key, Damaged) else Damaged("not JSON: no key", str(key))
            return
        stream.take()
        yield key, stream.value()
    if stream.take() == "":
        yield "", Damaged("the object is not closed", "")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant, strict=False)


def _check_surrogates(text: str, value: Any) -> None:
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("half a character (a lone surrogate)") from error


def _short(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error).split(": line")[0].lower()
