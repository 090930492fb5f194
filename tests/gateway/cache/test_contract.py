"""What every home of answers does."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.gateway.redis_server import RedisServer, until_up

from dialoop.core.errors import UpstreamError
from dialoop.gateway.cache import AnswerCache, tenant_digest
from dialoop.gateway.cache.memory import MemoryCache
from dialoop.gateway.cache.redis import RedisCache
from dialoop.gateway.redis_client import RedisClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def redis(server: RedisServer) -> AsyncIterator[AnswerCache]:
    client = RedisClient(server.url)
    await client.open()
    yield RedisCache(client, prefix=secrets.token_hex(4))
    await client.close()


@asynccontextmanager
async def memory() -> AsyncIterator[AnswerCache]:
    cache = MemoryCache(10**6)
    yield cache
    await cache.close()


@pytest.fixture(params=["memory", "redis"])
def run(request: pytest.FixtureRequest):
    """Runs a coroutine function with a cache."""
    is_redis = request.param == "redis"
    server = request.getfixturevalue("redis_server") if is_redis else None

    def run_it(body: Callable[[AnswerCache], Awaitable[None]]) -> None:
        async def main() -> None:
            async with redis(server) if server else memory() as cache:
                await body(cache)

        asyncio.run(main())

    return run_it


def key(tenant: str, rest: bytes) -> bytes:
    return tenant_digest(tenant) + rest


def test_what_was_put_is_got_byte_for_byte_and_replaced(run) -> None:
    async def body(cache: AnswerCache) -> None:
        value = bytes(range(256)) * 3
        assert await cache.get(key("t", b"1")) is None
        await cache.put(key("t", b"1"), value, 60)
        await cache.put(key("t", b"2"), b"other", 60)
        assert await cache.get(key("t", b"1")) == value
        await cache.put(key("t", b"1"), b"new", 60)
        assert await cache.get(key("t", b"1")) == b"new"
        assert await cache.get(key("t", b"2")) == b"other"
        assert await cache.get(key("u", b"1")) is None

    run(body)


def test_entries_end(run) -> None:
    async def body(cache: AnswerCache) -> None:
        await cache.put(key("t", b"1"), b"short", 0.05)
        await cache.put(key("t", b"2"), b"long", 60)
        await cache.put(key("t", b"3"), b"never", 0)
        assert await cache.get(key("t", b"1")) == b"short"
        await asyncio.sleep(0.1)
        assert await cache.get(key("t", b"1")) is None
        assert await cache.get(key("t", b"2")) == b"long"
        assert await cache.get(key("t", b"3")) is None

    run(body)


def test_a_tenant_is_cleared_alone_and_all_together(run) -> None:
    async def body(cache: AnswerCache) -> None:
        for number in range(1200):  # several batches
            await cache.put(key("t", b"%d" % number), b"x", 60)
        await cache.put(key("u", b"1"), b"y", 60)
        await cache.clear("t")
        found = [await cache.get(key("t", b"%d" % number)) for number in range(1200)]
        assert found == [None] * 1200
        assert await cache.get(key("u", b"1")) == b"y"
        await cache.clear()
        assert await cache.get(key("u", b"1")) is None

    run(body)


def test_memory_drops_the_least_recently_used_when_it_is_full() -> None:
    async def main() -> None:
        cache = MemoryCache(3 * 1400)  # a value of 1000 takes 400 more
        for name in (b"a", b"b", b"c"):
            await cache.put(key("t", name), b"x" * 1000, 60)
        assert await cache.get(key("t", b"a"))
        await cache.put(key("t", b"d"), b"x" * 1000, 60)
        found = [name for name in (b"a", b"b", b"c", b"d") if await cache.get(key("t", name))]
        assert found == [b"a", b"c", b"d"]
        assert cache.num_bytes == 3 * 1400
        await cache.put(key("t", b"e"), b"x" * 5000, 60)
        assert await cache.get(key("t", b"e")) is None, "larger than all room"
        assert await cache.get(key("t", b"a")), "and nothing goes for it"
        await cache.clear("t")
        assert cache.num_bytes == 0

    asyncio.run(main())


def test_expired_entries_give_their_room_back() -> None:
    now = [0.0]

    async def main() -> None:
        cache = MemoryCache(10**6, clock=lambda: now[0])
        await cache.put(key("t", b"1"), b"x", 5)
        now[0] = 5.0
        assert await cache.get(key("t", b"1")) is None
        assert cache.num_bytes == 0

    asyncio.run(main())


def test_a_redis_that_is_away_has_no_answers_and_does_not_pretend_to_clear(
    redis_server: RedisServer,
) -> None:
    async def main() -> None:
        client = RedisClient(redis_server.url)
        await client.open()
        cache = RedisCache(client, prefix="away")
        await cache.put(key("t", b"1"), b"x", 60)
        assert await cache.get(key("t", b"1")) == b"x"
        redis_server.freeze()
        try:
            assert await cache.get(key("t", b"1")) is None
            assert await cache.get(key("t", b"1")) is None
            await cache.put(key("t", b"2"), b"x", 60)
            with pytest.raises(UpstreamError, match="is away"):
                await cache.clear("t")
        finally:
            redis_server.thaw()
        await until_up(client)
        assert await cache.get(key("t", b"1")) == b"x", "nothing was lost"
        assert await cache.get(key("t", b"2")) is None
        await client.close()

    asyncio.run(main())


def test_large_answers_are_not_sent_to_redis(redis_server: RedisServer) -> None:
    async def main() -> None:
        async with redis(redis_server) as cache:
            await cache.put(key("t", b"1"), b"x" * 262_144, 60)
            await cache.put(key("t", b"2"), b"x" * 262_145, 60)
            assert await cache.get(key("t", b"1"))
            assert await cache.get(key("t", b"2")) is None

    asyncio.run(main())
