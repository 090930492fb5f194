"""Vectors in base64 for clients that want them so, from engines that write numbers only."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from dialoop.gateway.call import Json


def encode(found: Json) -> bool:
    """Write the vectors of an answer as base64 of 32-bit floats, low bytes first, in place.

    Returns:
        Whether any was written otherwise.
    """
    has_changed = False
    for one in found.get("data") or ():
        vector = one.get("embedding")
        if isinstance(vector, list):
            numbers = cast("list[Any]", vector)
            packed = struct.pack(f"<{len(numbers)}f", *numbers)
            one["embedding"] = base64.b64encode(packed).decode()
            has_changed = True
    return has_changed
