"""Answers that were given before, byte for byte, by who may see them and all that made them.

An entry is the whole completion as JSON; `replay` gives it back as one document or as a stream. Its
key is `key.cache_key`, which begins with the tenant, so that a tenant's entries can be dropped. A
cache that is away is one without entries: only `clear` fails, since it is a promise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import blake2b

TENANT_BYTES = 16
"""Length of the digest of the tenant that every key begins with."""


class AnswerCache(ABC):
    """A store of answers."""

    @abstractmethod
    async def get(self, key: bytes) -> bytes | None:
        """What was put under a key, unless it is too old or was dropped."""

    @abstractmethod
    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        """Keep a value for so many seconds, or less where room is needed."""

    @abstractmethod
    async def clear(self, tenant: str | None = None) -> None:
        """Drop the entries of a tenant, or all.

        Raises:
            UpstreamError: some may still be there.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of what is held."""


def tenant_digest(tenant: str) -> bytes:
    """What the keys of a tenant begin with."""
    return blake2b(tenant.encode(), digest_size=TENANT_BYTES, person=b"dialoop.tenant").digest()
