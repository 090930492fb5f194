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

    __slots__ = ("_has_return", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        """Of the event that has begun; joined once, when it ends."""
        self._size = 0
        self._has_return = False

    @property
    def is_inside(self) -> bool:
        """Whether an event has begun and has not ended."""
        return any(part.strip() for part in self._parts)

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
        if self._has_return:
            data, self._has_return = b"\r" + data, False
        if b"\r" in data:
            if data.endswith(b"\r"):  # its line feed may still come
                data, self._has_return = data[:-1], True
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._parts:
            is_cut = data[:1] == b"\n" and self._parts[-1].endswith(b"\n")
            if not is_cut and b"\n\n" not in data:
                if data:
                    self._parts.append(data)
                    self._grow(len(data))
                return []
            data = b"".join([*self._parts, data])
        *blocks, rest = data.split(b"\n\n")
        self._parts, self._size = [rest] if rest else [], 0
        self._grow(len(rest))
        found = [_data(block) for block in blocks]
        return [data for data in found if data is not None]

    def _grow(self, num_bytes: int) -> None:
        self._size += num_bytes
        if self._size > MAX_EVENT_BYTES:
            raise FrameError(f"an event is larger than {MAX_EVENT_BYTES // 2**20} MiB")


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
