"""Several gateways on one Redis, and a Redis that is frozen, killed or emptied."""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gateway.redis_server import RedisServer, until_up

from dialoop.gateway.keys import KeyLimits
from dialoop.gateway.limits import Admission, Counters, Refusal
from dialoop.gateway.limits.redis import RedisCounters
from dialoop.gateway.limits.shared import SharedCounters
from dialoop.gateway.redis_client import RedisClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SPAWN = multiprocessing.get_context("spawn")


@asynccontextmanager
async def gateway(
    url: str, folder: Path, *, num_gateways: int = 1, lease_s: float = 30.0, prefix: str = ""
) -> AsyncIterator[tuple[RedisClient, RedisCounters]]:
    client = RedisClient(url, probe_s=0.2)
    counters = RedisCounters(
        client,
        SharedCounters(folder),
        num_gateways=num_gateways,
        lease_s=lease_s,
        prefix=prefix or secrets.token_hex(4),
    )
    await client.open()
    yield client, counters
    await counters.close()
    await client.close()


async def num_admitted(counters: Counters, limits: KeyLimits, num: int) -> int:
    found = [await counters.admit("k", limits, 1) for _ in range(num)]
    return sum(isinstance(one, Admission) for one in found)


def _ask(url: str, folder: str, results: Any) -> None:
    async def main() -> int:
        async with gateway(url, Path(folder), prefix="two") as (client, counters):
            limits = KeyLimits(requests_per_minute=600)

            async def one_client() -> int:
                return await num_admitted(counters, limits, 125)

            admitted = sum(await asyncio.gather(*(one_client() for _ in range(8))))
            assert client.is_up
            assert client.num_outages == 0
            return admitted

    results.put(asyncio.run(main()))


def test_two_gateways_admit_exactly_the_limit(redis_server: RedisServer, tmp_path: Path) -> None:
    results = SPAWN.Queue()
    workers = [
        SPAWN.Process(target=_ask, args=(redis_server.url, str(tmp_path / str(n)), results))
        for n in range(2)
    ]
    for one in workers:
        one.start()
    admitted = [results.get(timeout=60) for _ in workers]
    for one in workers:
        one.join(10)
    assert sum(admitted) == 600, admitted


def test_a_frozen_redis_costs_few_requests_anything(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    limits = KeyLimits(requests_per_minute=100, concurrent=50)

    async def main() -> None:
        async with gateway(redis_server.url, tmp_path, num_gateways=4) as (client, counters):
            held = await counters.admit("k", limits, 1)
            assert isinstance(held, Admission)
            redis_server.freeze()
            try:
                began = time.monotonic()
                first = await counters.admit("k", limits, 1)
                assert 0.03 < time.monotonic() - began < 0.5
                assert isinstance(first, Admission)
                assert first.home is not counters
                assert not client.is_up
                began = time.monotonic()
                more = await num_admitted(counters, limits, 200)
                assert time.monotonic() - began < 0.5, "no request waits once it is known"
                assert 1 + more == 12, "a quarter of the 50 places"
                await counters.settle(first, 5)
                await counters.release(first)
                await counters.settle(held, 5)
                await counters.release(held)
                await asyncio.sleep(0.5)
                assert not client.is_up
                assert client.num_outages == 1
            finally:
                redis_server.thaw()
            await until_up(client)
            again = await counters.admit("k", limits, 1)
            assert isinstance(again, Admission)
            assert again.home is counters
            assert again.rooms[0].remaining <= 98, "what was charged before is still known"

    asyncio.run(main())


def test_all_requests_that_wait_for_a_frozen_redis_are_let_go_together(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with gateway(redis_server.url, tmp_path) as (client, counters):
            redis_server.freeze()
            try:
                began = time.monotonic()
                limits = KeyLimits(requests_per_minute=1000)
                asked = (counters.admit("k", limits, 1) for _ in range(100))
                found = await asyncio.gather(*asked)
                assert time.monotonic() - began < 0.5
                assert all(isinstance(one, Admission) for one in found)
                assert client.num_outages == 1
            finally:
                redis_server.thaw()

    asyncio.run(main())


def test_a_share_that_is_too_small_for_a_request_does_not_forbid_it_for_ever(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with gateway(redis_server.url, tmp_path, num_gateways=4) as (client, counters):
            limits = KeyLimits(tokens_per_minute=100)
            await client.close()
            found = await counters.admit("k", limits, 60)
            assert isinstance(found, Refusal)
            assert found.error().status == 429
            assert found.retry_after_s == 5
            found = await counters.admit("k", limits, 101)
            assert isinstance(found, Refusal)
            assert found.error().status == 400

    asyncio.run(main())


def test_a_killed_redis_that_comes_back_counts_again(tmp_path: Path) -> None:
    limits = KeyLimits(requests_per_minute=10)

    async def main() -> None:
        server = RedisServer()
        try:
            async with gateway(server.url, tmp_path, num_gateways=2) as (client, counters):
                assert await num_admitted(counters, limits, 4) == 4
                server.kill()
                assert await num_admitted(counters, limits, 20) == 5
                server.start()
                await until_up(client)
                assert await num_admitted(counters, limits, 20) == 10
        finally:
            server.kill()

    asyncio.run(main())


def test_a_redis_that_was_never_there_is_asked_again(tmp_path: Path) -> None:
    async def main() -> None:
        server = RedisServer()
        server.kill()
        try:
            async with gateway(server.url, tmp_path) as (client, counters):
                assert not client.is_up
                assert isinstance(
                    await counters.admit("k", KeyLimits(requests_per_minute=1), 1), Admission
                )
                server.start()
                await until_up(client)
        finally:
            server.kill()

    asyncio.run(main())


def test_leases_are_renewed_while_held_and_end_with_their_gateway(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    limits = KeyLimits(concurrent=1)
    url = redis_server.url

    async def main() -> None:
        async with gateway(url, tmp_path / "a", lease_s=0.6, prefix="lease") as (_, one):
            async with gateway(url, tmp_path / "b", lease_s=0.6, prefix="lease") as (_, other):
                assert isinstance(await other.admit("k", limits, 1), Admission)
                await asyncio.sleep(1.5)
                assert isinstance(await one.admit("k", limits, 1), Refusal), "renewed"
            await asyncio.sleep(0.8)
            assert isinstance(await one.admit("k", limits, 1), Admission), "its gateway is gone"

    asyncio.run(main())


def test_a_clock_of_redis_that_was_set_back_blocks_a_key_for_a_minute_at_most(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    ahead = """
    local rows = cmsgpack.unpack(redis.call('GET', KEYS[1]))
    for i = 1, #rows, 3 do rows[i] = rows[i] + 3600 end
    redis.call('SET', KEYS[1], cmsgpack.pack(rows))
    """

    async def main() -> None:
        async with gateway(redis_server.url, tmp_path, prefix="back") as (client, counters):
            limits = KeyLimits(requests_per_minute=1)
            assert await num_admitted(counters, limits, 1) == 1
            await client.call("EVAL", ahead, 1, "back:limits:{k}:counts")
            found = await counters.admit("k", limits, 1)
            assert isinstance(found, Refusal)
            assert found.retry_after_s is not None
            assert found.retry_after_s <= 61

    asyncio.run(main())


def test_a_request_that_is_given_up_while_it_is_asked_for_leaves_no_place(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def main() -> None:
        async with gateway(redis_server.url, tmp_path) as (_, counters):
            limits = KeyLimits(concurrent=1)
            for _ in range(20):
                asked = asyncio.ensure_future(counters.admit("k", limits, 1))
                await asyncio.sleep(0)
                asked.cancel()
                await asyncio.wait([asked])
                assert asked.cancelled()
            found = await counters.admit("k", limits, 1)
            assert isinstance(found, Admission)
            assert found.home is counters

    asyncio.run(main())
