"""Whether a request's answer is in the cache, and the answer on its way there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import orjson

from dialoop.gateway.cache.key import Origin, cache_key, is_cacheable, is_storable
from dialoop.serve.failure import bad

if TYPE_CHECKING:
    from dialoop.gateway.cache.semantic import Lookup
    from dialoop.gateway.call import Call, Json
    from dialoop.gateway.parts import Parts
    from dialoop.gateway.visit import Visit


@dataclass(frozen=True, slots=True)
class Kept:
    """The place of one request's answer."""

    key: bytes
    value: bytes | None
    """The answer, where there is one."""
    asked: Lookup | None = None
    """The place by meaning."""

    @classmethod
    async def look(cls, visit: Visit, call: Call, body: Json, parts: Parts) -> Self | None:
        """The place and what is there; None where nothing is to be kept.

        Raises:
            ApiError: `cache` is neither true nor false.
        """
        wanted = body.get("cache", True)
        if not isinstance(wanted, bool):
            raise bad("cache", f"true or false is required, got {wanted!r:.50}")
        cache, scope = parts.stores.cache, parts.job.cache.scope
        if cache is None or scope == "off" or not wanted or call.kind not in ("chat", "text"):
            return None
        if not is_cacheable(call.body):
            return None
        owner = visit.key.id if visit.key else ""
        if scope == "conversation":
            owner = str(visit.notes.get("conversation", ""))
            if not owner:
                return None
        origin = Origin(
            tenant=visit.tenant,
            scope=scope,
            owner=owner if scope != "tenant" else "",
            endpoint=call.kind,
            model=call.model.name,
            release=_release(call),
            policy=parts.guard.policy if parts.guard else "",
        )
        key = cache_key(origin, call.body)
        value, result, asked = await cache.get(key), "hit", None
        if value is None and call.kind == "chat" and parts.stores.similar:
            asked = await parts.stores.similar.get(origin, call.body)
            value, result = asked.value if asked else None, "similar"
        parts.metrics.cache.labels(result if value else "miss").inc()
        if value:
            visit.notes["cache"] = result
        return cls(key, value, asked)

    async def put(self, found: Json, call: Call, parts: Parts) -> None:
        """Keep a whole answer of the model that was asked for; others are no answer to keep."""
        cache = parts.stores.cache
        if cache and call.served is call.model and is_storable(found):
            value, ttl_s = orjson.dumps(found), parts.job.cache.ttl_s
            await cache.put(self.key, value, ttl_s)
            if self.asked and parts.stores.similar:
                parts.stores.similar.put(self.asked, value, ttl_s)


def _release(call: Call) -> str:
    """All that answers: the model's release, and the versions that share its requests."""
    versions = [f"{group.model}:{group.weight}" for group in call.model.groups]
    return "|".join([call.model.release, *versions])
