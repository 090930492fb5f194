"""What every home of the counters does."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from dialoop.gateway.keys import KeyLimits
from dialoop.gateway.limits import Admission, Counters, Refusal, duration
from dialoop.gateway.limits.redis import RedisCounters
from dialoop.gateway.limits.shared import SharedCounters
from dialoop.gateway.redis_client import RedisClient

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway.redis_server import RedisServer

Advance = Callable[[float], Awaitable[None]]
AGE = """
for _, name in ipairs(redis.call('KEYS', ARGV[2] .. ':*')) do
  if string.sub(name, -6) == 'counts' then
    local rows = cmsgpack.unpack(redis.call('GET', name))
    for i = 1, #rows, 3 do rows[i] = rows[i] - tonumber(ARGV[1]) end
    redis.call('SET', name, cmsgpack.pack(rows))
  else
    for _, member in ipairs(redis.call('ZRANGE', name, 0, -1)) do
      redis.call('ZINCRBY', name, -1000 * tonumber(ARGV[1]), member)
    end
  end
end
"""
"""Time cannot be set in Redis: what it holds is made older."""


@asynccontextmanager
async def shared(tmp_path: Path) -> AsyncIterator[tuple[Counters, Advance]]:
    now = [1000.25]
    counters = SharedCounters(tmp_path / "shared", clock=lambda: now[0])

    async def advance(seconds: float) -> None:
        now[0] += seconds

    yield counters, advance
    await counters.close()


@asynccontextmanager
async def redis(tmp_path: Path, server: RedisServer) -> AsyncIterator[tuple[Counters, Advance]]:
    prefix = secrets.token_hex(4)
    client = RedisClient(server.url)
    local = SharedCounters(tmp_path / "local")
    counters = RedisCounters(client, local, lease_s=1000, prefix=prefix)
    await client.open()

    async def advance(seconds: float) -> None:
        await client.call("EVAL", AGE, 0, int(seconds), prefix)

    yield counters, advance
    assert client.is_up, "the test was about the local counters"
    await counters.close()
    await client.close()


@pytest.fixture(params=["shared", "redis"])
def run(request: pytest.FixtureRequest, tmp_path: Path):
    """Runs a coroutine function with a home and its clock."""
    is_redis = request.param == "redis"
    server = request.getfixturevalue("redis_server") if is_redis else None

    def run_it(body: Callable[[Counters, Advance], Awaitable[None]]) -> None:
        async def main() -> None:
            home = redis(tmp_path, server) if server else shared(tmp_path)
            async with home as (counters, advance):
                await body(counters, advance)

        asyncio.run(main())

    return run_it


async def let_in(counters: Counters, limits: KeyLimits, tokens: int = 1) -> Admission:
    found = await counters.admit("k", limits, tokens)
    assert isinstance(found, Admission), found
    return found


async def refused(counters: Counters, limits: KeyLimits, tokens: int = 1) -> Refusal:
    found = await counters.admit("k", limits, tokens)
    assert isinstance(found, Refusal), found
    return found


def test_requests_up_to_the_limit_and_again_after_a_minute(run) -> None:
    limits = KeyLimits(requests_per_minute=3)

    async def body(counters: Counters, advance: Advance) -> None:
        left = [(await let_in(counters, limits)).rooms[0].remaining for _ in range(3)]
        assert left == [2, 1, 0]
        found = await refused(counters, limits)
        assert (found.limit_name, found.limit, found.remaining) == ("requests per minute", 3, 0)
        assert found.retry_after_s is not None
        assert 58 < found.retry_after_s <= 61
        await advance(59)
        await refused(counters, limits)
        await advance(2)
        await let_in(counters, limits)

    run(body)


def test_a_refusal_charges_nothing_of_any_limit(run) -> None:
    limits = KeyLimits(requests_per_minute=2, tokens_per_minute=100, concurrent=5)

    async def body(counters: Counters, advance: Advance) -> None:
        await let_in(counters, limits, 90)
        for _ in range(5):
            found = await refused(counters, limits, 11)
            assert (found.limit_name, found.remaining, found.asked) == ("tokens per minute", 10, 11)
        last = await let_in(counters, limits, 10)
        assert [(room.name, room.remaining) for room in last.rooms] == [
            ("requests", 0),
            ("tokens", 0),
        ]
        await refused(counters, limits, 0)
        await advance(61)
        held = [await let_in(counters, KeyLimits(concurrent=5)) for _ in range(3)]
        assert len(held) == 3, "five refusals took no place"
        await refused(counters, KeyLimits(concurrent=5))

    run(body)


def test_places_are_given_back_once(run) -> None:
    limits = KeyLimits(concurrent=2)

    async def body(counters: Counters, advance: Advance) -> None:
        one, _ = await let_in(counters, limits), await let_in(counters, limits)
        found = await refused(counters, limits)
        assert (found.limit_name, found.retry_after_s) == ("concurrent requests", 1.0)
        await counters.release(one)
        await counters.release(one)
        await let_in(counters, limits)
        await refused(counters, limits)

    run(body)


def test_a_settled_request_has_used_what_it_used(run) -> None:
    limits = KeyLimits(tokens_per_minute=100)

    async def body(counters: Counters, advance: Advance) -> None:
        one = await let_in(counters, limits, 80)
        await counters.settle(one, 10)
        two = await let_in(counters, limits, 60)
        assert two.rooms[0].remaining == 30
        await counters.settle(two, 200)  # above the limit: 210
        assert (await refused(counters, limits, 1)).remaining == 0
        await advance(61)
        assert (await let_in(counters, limits, 1)).rooms[0].remaining == 99

    run(body)


def test_what_a_long_request_used_too_much_counts_when_it_is_known(run) -> None:
    limits = KeyLimits(tokens_per_minute=100)

    async def body(counters: Counters, advance: Advance) -> None:
        one = await let_in(counters, limits, 10)
        two = await let_in(counters, limits, 10)
        await advance(90)
        await counters.settle(two, 0)  # its minute is over: there is nothing to give back
        await counters.settle(one, 105)
        found = await refused(counters, limits, 6)
        assert found.remaining == 5
        assert found.retry_after_s is not None
        assert found.retry_after_s > 58

    run(body)


def test_what_can_never_come_in_is_told_so(run) -> None:
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=100)

    async def body(counters: Counters, advance: Advance) -> None:
        await let_in(counters, limits, 1)
        found = await refused(counters, limits, 101)
        assert found.retry_after_s is None
        error = found.error()
        assert (error.status, error.code) == (400, "request_too_large")
        expected = "the limit of this key is 100 tokens per minute and this request alone asks for"
        assert expected in str(error)

    run(body)


def test_keys_do_not_see_one_another_and_no_limit_is_none(run) -> None:
    async def body(counters: Counters, advance: Advance) -> None:
        limits = KeyLimits(requests_per_minute=1)
        assert isinstance(await counters.admit("a", limits, 1), Admission)
        assert isinstance(await counters.admit("b", limits, 1), Admission)
        free = [await counters.admit("a", KeyLimits(), 10**9) for _ in range(3)]
        assert all(isinstance(one, Admission) and one.headers() == [] for one in free)
        assert isinstance(free[0], Admission)
        await counters.settle(free[0], 1)
        await counters.release(free[0])
        assert isinstance(await counters.admit("a", limits, 1), Refusal)

    run(body)


def test_headers_and_the_error(run) -> None:
    limits = KeyLimits(requests_per_minute=2, tokens_per_minute=1000)

    async def body(counters: Counters, advance: Advance) -> None:
        headers = dict((await let_in(counters, limits, 400)).headers())
        assert headers[b"x-ratelimit-limit-requests"] == b"2"
        assert headers[b"x-ratelimit-remaining-requests"] == b"1"
        assert headers[b"x-ratelimit-limit-tokens"] == b"1000"
        assert headers[b"x-ratelimit-remaining-tokens"] == b"600"
        assert headers[b"x-ratelimit-reset-tokens"] == headers[b"x-ratelimit-reset-requests"]
        assert headers[b"x-ratelimit-reset-tokens"].startswith((b"1m0.", b"1m1", b"59.", b"60"))
        found = await refused(counters, limits, 601)
        error = found.error()
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert error.retry_after_s is not None
        assert 58 <= error.retry_after_s <= 61
        assert "1000 tokens per minute: 600 left, 601 asked for. Try again in" in str(error)
        assert dict(found.headers())[b"x-ratelimit-remaining-requests"] == b"1"

    run(body)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.02, "20ms"), (1, "1s"), (1.2, "1.2s"), (60, "1m0s"), (360, "6m0s")],
)
def test_durations_are_spelt_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
