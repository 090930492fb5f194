"""The semantic cache of a worker: vectors come from a model that the gateway itself serves."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING

import numpy as np

from dialoop.gateway.ask import PATHS
from dialoop.gateway.cache.key import group_key
from dialoop.gateway.cache.semantic import SemanticCache
from dialoop.gateway.call import Call
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from dialoop.gateway.cache.key import Origin
    from dialoop.gateway.cache.semantic import Lookup, Vector
    from dialoop.gateway.call import Json
    from dialoop.gateway.pool import Pool
    from dialoop.gateway.relay import Relay
    from dialoop.gateway.spec import CacheSettings, SemanticSettings

log = logging.getLogger(__name__)


class Similar:
    """Answers by what is meant.

    Args:
        settings: of the cache.
        semantic: the same, of this part.
    """

    def __init__(self, settings: CacheSettings, semantic: SemanticSettings) -> None:
        self._settings = semantic
        self._cache = SemanticCache(
            self._embed, threshold=semantic.threshold, max_bytes=settings.max_bytes
        )
        self._pool: Pool
        self._relay: Relay

    def use(self, pool: Pool, relay: Relay) -> None:
        """Ask these from now on; before the first look-up, and at each new configuration."""
        self._pool, self._relay = pool, relay

    async def get(self, origin: Origin, body: Json) -> Lookup | None:
        """Look a chat up; None where its last message is no text, or has no vector in time."""
        found = group_key(origin, body)
        if found is None:
            return None
        try:
            return await self._cache.get(*found)
        except (ApiError, TimeoutError, LookupError, TypeError, ValueError) as error:
            log.warning("no vector of a question: %s", error or "time-out")
            return None

    def put(self, asked: Lookup, value: bytes, ttl_s: float) -> None:
        """Keep the answer to a chat that was looked up."""
        self._cache.put(asked, value, ttl_s)

    async def _embed(self, text: str) -> Vector:
        now = time.monotonic()
        call = Call(
            id=uuid.uuid4().hex,
            kind="embed",
            path=PATHS["embed"],
            body={"input": [text], "encoding_format": "float"},
            model=self._pool.find(self._settings.model),
            began=now,
            deadline=now + 2 * self._settings.timeout_s,
        )
        async with asyncio.timeout(self._settings.timeout_s):  # which is no fault of the engine
            found, _ = await self._relay.whole(call)
        return np.asarray(found["data"][0]["embedding"], dtype=np.float32)
