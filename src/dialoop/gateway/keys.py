"""API keys: what one may do, and the ring that finds a request's key in a microsecond.

A secret has 256 random bits and only its SHA-256 is kept, so that a look-up of the hash tells a
guesser nothing by its time, and no slow hash is needed. The ring is a copy in memory, made anew
within a second of any change; while the database does not answer, the last copy goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

ScopeName = Literal["chat", "embed", "rerank", "feedback", "conversations", "admin", "metrics"]
SCOPES: frozenset[str] = frozenset(get_args(ScopeName))
"""What a key can be made for."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much a key may be used; None sets no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    concurrent: int | None = None
    """Requests that may be under way together."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without its secret."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    """Models that it may name; None for all."""
    expires_at: float | None
    """Seconds since 1970."""
    limits: KeyLimits

    def allow(self, scope: str, model: str | None = None) -> None:
        """Let a request through.

        Args:
            scope: what the request does, one of `SCOPES`.
            model: the model that it names.

        Raises:
            ApiError: 403, the key is not for this.
        """
        if scope not in self.scopes:
            raise ApiError(
                403,
                f"You have insufficient permissions for this operation. Missing scopes: {scope}.",
                code="missing_scope",
            )
        if model is not None and self.models is not None and model not in self.models:
            raise ApiError(
                403,
                f"The API key does not have access to model `{model}`.",
                param="model",
                code="model_not_found",
            )


@dataclass(frozen=True, slots=True)
class KeySnapshot:
    """All keys at one moment, by the SHA-256 of their secrets."""

    generation: int
    """Changes with any change of a key."""
    active: Mapping[bytes, Key]
    """Expired ones included: that is checked at each use."""
    revoked: frozenset[bytes]


class KeySource(Protocol):
    """Where keys are kept."""

    async def generation(self) -> int:
        """A number that changes with any change of a key; cheap to ask for."""
        ...

    async def snapshot(self) -> KeySnapshot:
        """All keys."""
        ...


class KeyRing:
    """The keys in memory; `start` it before use and `stop` it after.

    Args:
        source: where keys are kept.
        interval_s: how often to ask whether they changed, in seconds.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        source: KeySource,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._interval_s = interval_s
        self._clock = clock
        self._snapshot = KeySnapshot(generation=-1, active={}, revoked=frozenset())
        self._has_failed = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys and begin to follow their changes; raises what the source raises."""
        self._snapshot = await self._source.snapshot()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """End following."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def find(self, authorization: bytes) -> Key:
        """The key that a request carries.

        Args:
            authorization: the value of its `Authorization` header; empty when it has none.

        Raises:
            ApiError: 401, there is no such key, or it has expired or was revoked.
        """
        if not authorization:
            raise ApiError(
                401,
                "You didn't provide an API key. You need to provide your API key in an"
                " Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        scheme, _, secret = authorization.partition(b" ")
        secret = secret.strip()
        if scheme.lower() != b"bearer" or not secret:
            raise _refused("Invalid Authorization header: write `Authorization: Bearer YOUR_KEY`.")
        digest = sha256(secret).digest()
        key = self._snapshot.active.get(digest)
        if key is None:
            if digest in self._snapshot.revoked:
                raise _refused("This API key has been revoked.")
            raise _refused("Incorrect API key provided.")
        if key.expires_at is not None and key.expires_at <= self._clock():
            raise _refused("This API key has expired.")
        return key

    async def refresh(self) -> None:
        """Take over changes now; while the source fails, the last keys go on."""
        try:
            if await self._source.generation() != self._snapshot.generation:
                self._snapshot = await self._source.snapshot()
        except Exception as error:  # noqa: BLE001  revocations must be followed whatever happened
            if not self._has_failed:
                log.warning("keys cannot be refreshed, the last ones go on: %s", error)
            self._has_failed = True
            return
        if self._has_failed:
            log.warning("keys are refreshed again")
        self._has_failed = False

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.refresh()


def _refused(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")
