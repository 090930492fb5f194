"""Tokens of an image: InternVL's tiles by the size in a PNG or JPEG header, or a fixed number.

Tiling: OpenGVLab/InternVL, `dynamic_preprocess` (448 pixels a tile, at most 12 tiles, a thumbnail
beside them, 256 tokens each); Chen et al. 2024, "How Far Are We to GPT-4V?", section 3.3.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TILE_PIXELS = 448
TILE_TOKENS = 256
MAX_TILES = 12
FRAME_TOKENS = 3
"""`<img>`, `</img>` and a line break around the tiles."""
LARGEST = TILE_TOKENS * (MAX_TILES + 1) + FRAME_TOKENS
"""Tokens of an image whose size is not known: as many as one can have."""
_HEADER_CHARS = 88_000
"""Base64 characters that most often hold a JPEG's size, an embedded preview included."""


def fixed_tokens(num: int) -> Callable[[str], int]:
    """The rule of a model that spends the same on every image."""
    return lambda _: num


def internvl_tokens(source: str) -> int:
    """Tokens of an image as InternVL cuts it; the most it can be where its size is not known.

    Args:
        source: `data:image/...;base64,` or an address, which is not fetched.
    """
    size = size_of(source)
    return LARGEST if size is None else _tiled(*size)


def size_of(source: str) -> tuple[int, int] | None:
    """Width and height in pixels from the header, without decoding; None where it tells none."""
    head, found, data = source.partition(";base64,")
    if not found or not head.startswith("data:image/"):
        return None
    for length in (_HEADER_CHARS, len(data)):
        cut = data[: length - length % 4]
        try:
            size = _read(base64.b64decode(cut + "=" * (-len(cut) % 4)))
        except (binascii.Error, ValueError):
            return None
        if size or length >= len(data):
            return size
    return None


def _read(data: bytes) -> tuple[int, int] | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        return _positive(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """The size in the first start-of-frame segment (ITU T.81, B.2.2)."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        mark = data[place + 1]
        if mark == 0xFF:  # a fill byte
            place += 1
        elif 0xC0 <= mark <= 0xCF and mark not in {0xC4, 0xC8, 0xCC}:
            height = int.from_bytes(data[place + 5 : place + 7])
            return _positive(int.from_bytes(data[place + 7 : place + 9]), height)
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


def _positive(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if width and height else None


@lru_cache(maxsize=1024)
def _tiled(width: int, height: int) -> int:
    """Tokens of the grid whose shape is nearest; of two as near, the larger for large images."""
    ratio, area = width / height, width * height
    best, nearest = (1, 1), float("inf")
    for columns, rows in _grids():
        distance = abs(ratio - columns / rows)
        is_large = area > 0.5 * TILE_PIXELS**2 * columns * rows
        if distance < nearest or (distance == nearest and is_large):
            best, nearest = (columns, rows), distance
    tiles = best[0] * best[1]
    return TILE_TOKENS * (tiles + (tiles > 1)) + FRAME_TOKENS


@lru_cache(maxsize=1)
def _grids() -> list[tuple[int, int]]:
    sides = range(1, MAX_TILES + 1)
    grids = [(i, j) for i in sides for j in sides if i * j <= MAX_TILES]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
