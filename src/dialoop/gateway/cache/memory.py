"""Answers in this process: the least recently used ones go first when there is no room."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from dialoop.gateway.cache import TENANT_BYTES, AnswerCache, tenant_digest

if TYPE_CHECKING:
    from collections.abc import Callable

_ENTRY_BYTES = 400
"""What an entry takes beside its value."""


class MemoryCache(AnswerCache):
    """Answers of this process.

    Args:
        max_bytes: of all entries together.
        clock: seconds.
    """

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._clock = max_bytes, clock
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._tenants: dict[bytes, set[bytes]] = {}
        self.num_bytes = 0

    async def get(self, key: bytes) -> bytes | None:
        """See `AnswerCache.get`."""
        found = self._entries.get(key)
        if found is None:
            return None
        if found[1] <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found[0]

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        """See `AnswerCache.put`."""
        self._drop(key)
        size = len(value) + _ENTRY_BYTES
        if size > self._max_bytes or ttl_s <= 0:
            return
        self._entries[key] = (value, self._clock() + ttl_s)
        self._tenants.setdefault(key[:TENANT_BYTES], set()).add(key)
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    async def clear(self, tenant: str | None = None) -> None:
        """See `AnswerCache.clear`."""
        if tenant is None:
            self._entries.clear()
            self._tenants.clear()
            self.num_bytes = 0
            return
        for key in list(self._tenants.get(tenant_digest(tenant), ())):
            self._drop(key)

    async def close(self) -> None:
        """See `AnswerCache.close`."""
        await self.clear()

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is None:
            return
        self.num_bytes -= len(found[0]) + _ENTRY_BYTES
        of_tenant = self._tenants[key[:TENANT_BYTES]]
        of_tenant.discard(key)
        if not of_tenant:
            del self._tenants[key[:TENANT_BYTES]]
