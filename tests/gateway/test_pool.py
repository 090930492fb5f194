"""Places at engines: who gets one, in which order, and who is told that there is none."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from dialoop.gateway.pool import Lease, NoEngineError, Pool
from dialoop.gateway.spec import GatewayJob
from dialoop.serve.failure import ApiError

pytestmark = pytest.mark.anyio

NONE: frozenset[Any] = frozenset()


def job(num: int = 1, places: int = 1, **settings: Any) -> GatewayJob:
    engines = [
        {"name": f"e{n}", "url": f"http://127.0.0.1:{n + 1}/v1", "max_concurrent": places}
        for n in range(num)
    ]
    wanted = {"engines": engines, "models": {"m": {"versions": [{"model": "m"}]}}}
    return GatewayJob.model_validate(wanted | settings)


def asking(pool: Pool, name: str = "m", key: int | None = None, tried: Any = NONE, s: float = 9):
    """A request that waits for a place."""
    limit = time.monotonic() + s
    return asyncio.create_task(pool.lease(pool.find(name), key, tried, limit))


async def taken(pool: Pool, num: int) -> list[Lease]:
    """Places that are taken at once."""
    return [await asking(pool) for _ in range(num)]


async def some_time() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_line_is_served_in_order_and_at_once():
    pool = Pool(job())
    (lease,) = await taken(pool, 1)
    waiting = [asking(pool) for _ in range(3)]
    await some_time()
    assert pool.num_waiting == 3
    for number in range(3):
        began = time.monotonic()
        pool.release(lease)
        lease = await waiting[number]
        assert time.monotonic() - began < 0.1
        assert [one.done() for one in waiting] == [n <= number for n in range(3)]
        assert lease.engine.num_open == 1
    pool.release(lease)
    assert pool.engines[0].num_open == pool.num_waiting == 0


async def test_nobody_overtakes_those_who_wait():
    pool = Pool(job())
    (lease,) = await taken(pool, 1)
    first = asking(pool)
    await some_time()
    pool.release(lease)
    second = asking(pool)  # comes before the first could run
    await some_time()
    assert first.done()
    assert not second.done()
    pool.release(first.result())
    await second


async def test_a_place_that_the_first_cannot_use_goes_to_the_next():
    pool = Pool(job(2))
    leases = await taken(pool, 2)
    freed = leases[0].engine
    stubborn = asking(pool, tried=frozenset({freed}))
    other = asking(pool)
    await some_time()
    began = time.monotonic()
    pool.release(leases[0])
    assert (await other).engine is freed
    assert time.monotonic() - began < 0.1
    assert not stubborn.done()
    pool.release(leases[1])
    assert (await stubborn).engine is leases[1].engine


async def test_a_place_of_one_version_goes_to_who_is_of_that_version():
    versions = [{"model": "a", "engines": ["e0"]}, {"model": "b", "engines": ["e1"]}]
    pool = Pool(job(2, models={"m": {"versions": versions}}))
    keys = {lease.model: key for key in range(50) if (lease := pool.take(pool.find("m"), key, NONE))
            and not pool.release(lease)}  # fmt: skip
    held = [await asking(pool, key=keys[name]) for name in "ab"]
    first, second = asking(pool, key=keys["a"]), asking(pool, key=keys["b"])
    await some_time()
    began = time.monotonic()
    pool.release(held[1])
    assert (await second).model == "b"
    assert time.monotonic() - began < 0.1
    assert not first.done()
    pool.release(held[0])
    assert (await first).model == "a"


async def test_who_left_the_line_keeps_no_place():
    pool = Pool(job())
    (lease,) = await taken(pool, 1)
    gone, next_one = asking(pool), asking(pool)
    await some_time()
    pool.release(lease)  # to the one that is cancelled before it knows
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    pool.release(await next_one)
    assert pool.engines[0].num_open == pool.num_waiting == 0


async def test_the_line_is_bounded_and_so_is_the_wait():
    pool = Pool(job(sizes={"max_waiting": 2}, patience={"queue_s": 0.1}))
    await taken(pool, 1)
    waiting = [asking(pool) for _ in range(2)]
    await some_time()
    with pytest.raises(ApiError, match="too many requests wait") as full:
        await asking(pool)
    assert (full.value.status, full.value.retry_after_s) == (429, 1)
    for one in waiting:
        with pytest.raises(ApiError, match=r"within 0\.1 s") as late:
            await one
        assert late.value.status == 429
    assert pool.num_waiting == 0


async def test_a_deadline_in_line_is_a_time_out():
    pool = Pool(job())
    await taken(pool, 1)
    with pytest.raises(ApiError) as late:
        await asking(pool, s=0.1)
    assert late.value.status == 504


async def test_engines_that_were_tried_or_are_dead_are_not_given():
    pool = Pool(job(3, places=9))
    first, second, third = pool.engines
    second.is_healthy = False
    for _ in range(9):
        assert (await asking(pool, tried=frozenset({first}))).engine is third
    with pytest.raises(NoEngineError):
        await asking(pool, tried=frozenset({first, third}))


async def test_who_waits_for_an_engine_that_dies_learns_it():
    pool = Pool(job())
    await taken(pool, 1)
    waiting = asking(pool)
    await some_time()
    pool.engines[0].is_healthy = False
    with pytest.raises(NoEngineError):
        await waiting


async def test_an_engine_that_comes_back_serves_the_line():
    pool = Pool(job(2))
    pool.engines[1].is_healthy = False
    await taken(pool, 1)
    waiting = asking(pool)
    await some_time()
    pool.engines[1].is_healthy = True
    assert (await waiting).engine is pool.engines[1]


async def test_nobody_overtakes_when_an_engine_comes_back():
    pool = Pool(job(2))
    pool.engines[1].is_healthy = False
    await taken(pool, 1)
    waiting = asking(pool)
    await some_time()
    pool.engines[1].is_healthy = True
    late = asking(pool)
    await some_time()
    assert waiting.done()
    assert not late.done()
    late.cancel()


async def test_a_draining_engine_gets_nothing_new():
    entries = [
        {"name": "e0", "url": "http://127.0.0.1:1/v1", "is_draining": True},
        {"name": "e1", "url": "http://127.0.0.1:2/v1"},
    ]
    pool = Pool(job(engines=entries))
    assert {lease.engine.label for lease in await taken(pool, 20)} == {"e1"}


async def test_a_version_without_weight_gets_nothing_even_alone():
    versions = [
        {"model": "a", "engines": ["e0"], "weight": 0},
        {"model": "b", "engines": ["e1"], "weight": 1},
    ]
    pool = Pool(job(2, places=99, models={"m": {"versions": versions}}))
    assert {lease.model for lease in await taken(pool, 20)} == {"b"}
    pool.engines[1].is_healthy = False
    with pytest.raises(NoEngineError):
        await asking(pool)


@pytest.mark.parametrize("policy", ["affinity", "least_loaded", "round_robin"])
async def test_no_policy_gives_more_places_than_there_are(policy: str):
    pool = Pool(job(3, places=2, routing=policy, patience={"queue_s": 0}))
    leases = await taken(pool, 6)
    assert [one.num_open for one in pool.engines] == [2, 2, 2]
    with pytest.raises(ApiError):
        await asking(pool)
    for lease in leases:
        pool.release(lease)


async def test_a_new_configuration_keeps_engines_with_what_is_open_there():
    old = Pool(job(2))
    held = await taken(old, 2)
    waiting = asking(old)
    await some_time()
    settings: dict[str, Any] = {"health": {"interval_s": 99}, "breaker": {"num_failures": 7}}
    new = Pool(job(3, **settings), old)
    kept = new.engines[:2]
    assert kept == old.engines
    assert kept[0]._health.interval_s == 5  # not before it is taken over
    new.start(old)
    assert kept[0]._health.interval_s == 99
    assert kept[0].breaker.num_failures == 7
    assert [one.num_open for one in new.engines] == [1, 1, 0]
    assert (await asking(new)).engine is new.engines[2]
    later = asking(new)
    await some_time()
    assert new.num_waiting == 2  # one line for both
    new.release(held[0])
    assert (await waiting).engine is held[0].engine
    old.release(held[1])
    assert (await later).engine is held[1].engine
    await new.stop()


async def test_who_waits_for_an_engine_that_is_drained_still_gets_it():
    old = Pool(job())
    (held,) = await taken(old, 1)
    waiting = asking(old)
    await some_time()
    entry = {"name": "e0", "url": "http://127.0.0.1:1/v1", "is_draining": True}
    new = Pool(job(engines=[entry, "http://127.0.0.1:9/v1"]), old)
    new.start(old)
    assert {(await asking(new)).engine for _ in range(5)} == {new.engines[1]}
    new.release(held)
    assert (await waiting).engine is held.engine
    await new.stop()


async def test_models_are_the_engines_own_where_none_are_named():
    pool = Pool(job(2, models={}))
    with pytest.raises(ApiError, match="none yet: no engine has answered"):
        pool.find("a")
    pool.engines[0].models, pool.engines[1].models = ("a", "b"), ("b",)
    assert pool.find("b") is pool.find("b")
    assert pool.find("b").groups[0].engines == pool.engines
    pool.engines[1].models = ()
    assert pool.find("b").groups[0].engines == pool.engines[:1]
