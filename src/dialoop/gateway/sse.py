"""Server-sent events, whole ones only: what engines send is cut at blank lines, never elsewhere.

Source: WHATWG HTML, section 9.2.6 (event streams), of 2026.
"""

from __future__ import annotations

DONE = b"[DONE]"

MAX_EVENT_BYTES = 16 * 2**20


class FrameError(Exception):
    """The stream is no event stream."""


class Framer:
    """Bytes of an event stream in any cuts, and the data of each event that is whole."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def is_inside(self) -> bool:
        """Whether an event has begun and has not ended."""
        return bool(self._rest.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, give the data of the events that they complete.

        Args:
            data: the next bytes of the stream.

        Returns:
            The `data` fields, lines of one event joined by a line feed; comments and events without
            data give nothing.

        Raises:
            FrameError: an event is larger than 16 MiB.
        """
        text = self._rest + data if self._rest else data
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # its line feed may still come
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, rest = text.split(b"\n\n")
        self._rest = rest + held
        if len(self._rest) > MAX_EVENT_BYTES:
            raise FrameError(f"an event is larger than {MAX_EVENT_BYTES // 2**20} MiB")
        found = [_data(block) for block in blocks]
        return [data for data in found if data is not None]


def _data(block: bytes) -> bytes | None:
    """The data of one event."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [_value(line) for line in block.split(b"\n") if line.startswith(b"data")]
    found = [line for line in lines if line is not None]
    return b"\n".join(found) if found else None


def _value(line: bytes) -> bytes | None:
    name, _, value = line.partition(b":")
    return value.removeprefix(b" ") if name == b"data" else None


def frame(data: bytes) -> bytes:
    """One event of one line."""
    return b"data: " + data + b"\n\n"
