"""What the gateway works with under one configuration: engines, keys, limits, filter, numbers."""

from __future__ import annotations

import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.core import env
from dialoop.gateway import ask, guard, tracing
from dialoop.gateway.books import Books
from dialoop.gateway.cache.memory import MemoryCache
from dialoop.gateway.cache.redis import RedisCache
from dialoop.gateway.contexts import Contexts
from dialoop.gateway.database import Database
from dialoop.gateway.history import History
from dialoop.gateway.keys import KeyRing
from dialoop.gateway.limits import Refusal, is_counted
from dialoop.gateway.limits.redis import RedisCounters
from dialoop.gateway.limits.shared import SharedCounters
from dialoop.gateway.metrics import GatewayMetrics
from dialoop.gateway.pool import Pool
from dialoop.gateway.redis_client import RedisClient
from dialoop.gateway.relay import Relay
from dialoop.gateway.similar import Similar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from dialoop.gateway.cache import AnswerCache
    from dialoop.gateway.call import Call
    from dialoop.gateway.guard import Guard
    from dialoop.gateway.keys import Key
    from dialoop.gateway.limits import Counters
    from dialoop.gateway.spec import GatewayJob
    from dialoop.gateway.visit import Visit


@dataclass(frozen=True, slots=True)
class Stores:
    """What outlives a configuration."""

    metrics: GatewayMetrics
    books: Books
    counters: Counters
    database: Database
    history: History
    keys: KeyRing | None = None
    redis: RedisClient | None = None
    cache: AnswerCache | None = None
    similar: Similar | None = None

    async def close(self) -> None:
        """Write what is left and let go of everything."""
        if self.keys:
            await self.keys.stop()
        await self.books.close()
        await self.history.close()
        await self.counters.close()
        if self.cache:
            await self.cache.close()
        if self.redis:
            await self.redis.close()
        await self.database.close()


@dataclass(frozen=True, slots=True)
class Parts:
    """One configuration, opened."""

    job: GatewayJob
    pool: Pool
    relay: Relay
    stores: Stores
    contexts: Contexts
    guard: Guard | None = None

    @property
    def metrics(self) -> GatewayMetrics:
        """The worker's numbers."""
        return self.stores.metrics

    @property
    def database(self) -> Database:
        """Where things are kept."""
        return self.stores.database

    def find_key(self, authorization: bytes) -> Key | None:
        """Whose request it is; None where no keys are wanted.

        Raises:
            ApiError: 401.
        """
        return self.stores.keys.find(authorization) if self.stores.keys else None

    @asynccontextmanager
    async def admitted(self, visit: Visit, call: Call) -> AsyncGenerator[None, None]:
        """A block in which a request counts against the limits of its key.

        Raises:
            ApiError: 429, with what is left in its headers.
        """
        key = visit.key
        if key is None:
            yield
            return
        if error := self.stores.books.quotas.check(key):
            raise error
        if not is_counted(key.limits):
            yield
            return
        tokens = 0
        if key.limits.tokens_per_minute is not None:
            tokens = ask.estimate_tokens(call.body) + ask.asked_tokens(call.body)
        admission = await self.stores.counters.admit(key.id, key.limits, tokens)
        visit.reply.more += admission.headers()
        if isinstance(admission, Refusal):
            raise admission.error()
        try:
            yield
        finally:
            if key.limits.tokens_per_minute is not None:
                if not call.usage.is_known and call.num_events:  # cut, or the client went away
                    call.usage.prompt = ask.estimate_tokens(call.body)
                    call.usage.completion = call.num_events
                used = call.usage.prompt + call.usage.completion
                await self.stores.counters.settle(admission, used)
            await self.stores.counters.release(admission)

    def tell(self, visit: Visit, now: float) -> None:
        """A request has ended: to logs, traces and usage."""
        self.stores.books.take(visit, now)

    async def close(self) -> None:
        """Let go of everything."""
        await self.pool.stop()
        await self.stores.close()


async def open_parts(
    job: GatewayJob, folder: Path | None = None, old: Parts | None = None
) -> Parts:
    """Open a configuration.

    Args:
        job: the configuration.
        folder: that the workers of the gateway share; None where there is one only.
        old: what is open already; what has not changed is taken over.

    Raises:
        DialoopError: something of it cannot be had.
    """
    pool = Pool(job, old.pool if old else None)
    relay = Relay(pool, job.patience, job.sizes)
    stores = old.stores if old else await open_stores(job, folder)
    if stores.similar:
        stores.similar.use(pool, relay)
    return Parts(
        job=job,
        pool=pool,
        relay=relay,
        stores=stores,
        contexts=Contexts(job, old.contexts if old else None),
        guard=guard.load(job.guard) if job.guard else None,
    )


async def open_stores(job: GatewayJob, folder: Path | None) -> Stores:
    """Open what outlives a configuration.

    Raises:
        DialoopError: the database cannot be reached, or a package is missing.
    """
    database = await Database.open(job.database, job.database_s)
    try:
        keys = None
        if job.require_keys:
            from dialoop.gateway.store.keys import Keys

            keys = KeyRing(Keys(database))
            await keys.start()
        counters: Counters = SharedCounters(folder or Path(tempfile.mkdtemp(prefix="dialoop-")))
        redis = RedisClient(job.redis) if job.redis else None
        if redis:
            counters = RedisCounters(redis, counters, num_gateways=job.num_gateways)
            await redis.open()
    except BaseException:
        await database.close()
        raise
    access = tracing.AccessLog(sys.stderr.write) if job.traces.access_log else None
    books = Books(database, job.traces, access)
    books.start()
    return Stores(
        metrics=GatewayMetrics(is_shared=env.has_shared_metrics()),
        books=books,
        counters=counters,
        database=database,
        history=History(database),
        keys=keys,
        redis=redis,
        cache=_cache(job, redis),
        similar=Similar(job.cache, job.cache.semantic) if job.cache.semantic else None,
    )


def _cache(job: GatewayJob, redis: RedisClient | None) -> AnswerCache | None:
    if job.cache.scope == "off":
        return None
    return RedisCache(redis) if redis else MemoryCache(job.cache.max_bytes)
