"""Answers that several gateways share, in Redis; while it is away there are none.

Room is Redis' own business: give it `maxmemory` and `maxmemory-policy volatile-lru`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.core.errors import UpstreamError
from dialoop.gateway.cache import TENANT_BYTES, AnswerCache, tenant_digest

if TYPE_CHECKING:
    from dialoop.gateway.redis_client import RedisClient

_BATCH = 500


class RedisCache(AnswerCache):
    """Answers of all gateways that name the same Redis.

    Args:
        client: closed by its owner.
        max_value_bytes: a larger answer is not kept: others wait while it is sent.
        prefix: of the names of keys in Redis.
    """

    def __init__(
        self, client: RedisClient, *, max_value_bytes: int = 262_144, prefix: str = "dialoop"
    ) -> None:
        self._client, self._max_value_bytes, self._prefix = client, max_value_bytes, prefix

    async def get(self, key: bytes) -> bytes | None:
        """See `AnswerCache.get`."""
        if not self._client.is_up:
            return None
        try:
            return await self._client.call("GET", self._name(key))
        except UpstreamError:
            return None

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        """See `AnswerCache.put`; sent without waiting for Redis."""
        millis = int(ttl_s * 1000)
        if millis > 0 and len(value) <= self._max_value_bytes:
            self._client.post("SET", self._name(key), value, "PX", millis)

    async def clear(self, tenant: str | None = None) -> None:
        """See `AnswerCache.clear`."""
        of_tenant = "*" if tenant is None else f"{tenant_digest(tenant).hex()}:*"
        cursor = b"0"
        while True:
            cursor, names = await self._client.call(
                "SCAN", cursor, "MATCH", f"{self._prefix}:answer:{of_tenant}", "COUNT", _BATCH
            )
            if names:
                await self._client.call("UNLINK", *names)
            if cursor == b"0":
                return

    async def close(self) -> None:
        """See `AnswerCache.close`."""

    def _name(self, key: bytes) -> str:
        return f"{self._prefix}:answer:{key[:TENANT_BYTES].hex()}:{key[TENANT_BYTES:].hex()}"
