"""Frames between server and worker: four bytes of length, then one JSON object."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from typing import BinaryIO

Frame = dict[str, Any]
_LENGTH = struct.Struct("<I")


def encode(frame: Frame) -> bytes:
    """The bytes of one frame."""
    body = orjson.dumps(frame)
    return _LENGTH.pack(len(body)) + body


def read(file: BinaryIO) -> Frame | None:
    """The next frame of a blocking stream; None when the other side is gone."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    body = file.read(size)
    return orjson.loads(body) if len(body) == size else None


async def read_async(stream: asyncio.StreamReader) -> Frame | None:
    """The next frame of an asyncio stream; None when the other side is gone."""
    try:
        (size,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
        return orjson.loads(await stream.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
