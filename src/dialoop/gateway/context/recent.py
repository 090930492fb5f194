"""A bounded memory of what was computed, the least recently used forgotten first."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by 16-byte digests, so that no text of a dialogue is held.

    Args:
        size: entries that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: dict[bytes, T] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> T | None:
        """The value, which is now the most recent; None when it is not known."""
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value
        return value

    def put(self, key: bytes, value: T) -> T:
        """Remember a value."""
        self._values.pop(key, None)
        self._values[key] = value
        if len(self._values) > self._size:
            self._values.pop(next(iter(self._values)), None)
        return value
