"""Microseconds of CPU a call of the gateway's limits and cache takes; JSON on stdout.

Usage: python benchmarks/gateway_counters.py [--calls 20000]

A Redis is started on a free port if `redis-server` is installed. `frozen` is what requests pay that
are asked one after another while Redis is stopped for two seconds, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoop.gateway.cache.key import Origin, cache_key, is_cacheable
from dialoop.gateway.cache.memory import MemoryCache
from dialoop.gateway.cache.redis import RedisCache
from dialoop.gateway.cache.semantic import SemanticCache
from dialoop.gateway.keys import KeyLimits
from dialoop.gateway.limits import Admission, Counters
from dialoop.gateway.limits.redis import RedisCounters
from dialoop.gateway.limits.shared import SharedCounters
from dialoop.gateway.redis_client import RedisClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIMITS = KeyLimits(requests_per_minute=10**9, tokens_per_minute=10**12, concurrent=10**6)
ORIGIN = Origin("tenant", "key", "key_1", "chat", "model", "release 1", "policy 1")
BODY = {
    "model": "model",
    "messages": [{"role": "user" if n % 2 == 0 else "assistant", "content": "word " * 50}
                 for n in range(9)],
    "temperature": 0,
}  # fmt: skip


async def timed(num: int, at_once: int, call: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """CPU and wall time of a call, in microseconds."""

    async def some() -> None:
        for _ in range(num // at_once):
            await call()

    await call()
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(some() for _ in range(at_once)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_us": round(cpu / num * 1e6, 2), "wall_us": round(wall / num * 1e6, 2)}


async def steps(counters: Counters, num: int, at_once: int = 1) -> dict[str, Any]:
    """Admit alone, and a whole request: admit, headers, settle, release."""

    async def admit() -> None:
        found = await counters.admit("key_1", LIMITS, 100)
        assert isinstance(found, Admission)  # noqa: S101

    async def request() -> None:
        found = await counters.admit("key_2", LIMITS, 100)
        assert isinstance(found, Admission)  # noqa: S101
        found.headers()
        await counters.settle(found, 80)
        await counters.release(found)

    return {
        "admit": await timed(num, at_once, admit),
        "request": await timed(num, at_once, request),
    }


def _rival(folder: str, seconds: float) -> None:
    async def main() -> None:
        counters = SharedCounters(Path(folder))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await counters.admit("key_1", LIMITS, 1)
            await asyncio.sleep(0.0002)
        await counters.close()

    asyncio.run(main())


async def shared(folder: Path, num: int) -> dict[str, Any]:
    """The table, alone and beside a process that uses it 4,000 times a second."""
    counters = SharedCounters(folder / "a")
    found: dict[str, Any] = {"alone": await steps(counters, num)}
    for number in range(4000):
        await counters.admit(f"other {number}", LIMITS, 1)
    found["with 4,000 keys"] = await steps(counters, num)
    await counters.close()
    rival = multiprocessing.get_context("spawn").Process(
        target=_rival, args=(str(folder / "b"), 6.0)
    )
    rival.start()
    await asyncio.sleep(2.0)
    counters = SharedCounters(folder / "b")
    found["beside another process"] = await steps(counters, num)
    await counters.close()
    rival.join()
    return found


async def redis(folder: Path, num: int) -> dict[str, Any]:
    """One Redis on this machine; then what it costs while it is stopped."""
    binary = shutil.which("redis-server")
    if binary is None:
        return {"skipped": "redis-server is not installed"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)  # noqa: ASYNC220, S603
    try:
        await asyncio.sleep(0.5)
        client = RedisClient(f"redis://127.0.0.1:{port}")
        counters = RedisCounters(client, SharedCounters(folder))
        cache = RedisCache(client)
        await client.open()
        key = cache_key(ORIGIN, BODY)
        await cache.put(key, b"x" * 2000, 600)
        found: dict[str, Any] = {}
        for at_once in (1, 16):
            got = await timed(num // 2, at_once, lambda: cache.get(key))
            pinged = await timed(num // 2, at_once, lambda: client.call("PING"))
            found[f"{at_once} at once"] = await steps(counters, num // 2, at_once) | {
                "cache get of 2,000 bytes": got,
                "ping": pinged,
            }
        found["frozen"] = await frozen(server, client, counters)
        await counters.close()
        await client.close()
    finally:
        server.kill()
        server.wait()
    return found


async def frozen(
    server: subprocess.Popen[bytes], client: RedisClient, counters: Counters
) -> dict[str, Any]:
    """What requests pay, and how soon Redis is used again."""
    server.send_signal(signal.SIGSTOP)
    costs: list[float] = []
    end = time.perf_counter() + 2.0
    while time.perf_counter() < end:
        began = time.perf_counter()
        await counters.admit("key_3", LIMITS, 1)
        costs.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.002)
    server.send_signal(signal.SIGCONT)
    began = time.perf_counter()
    while not client.is_up:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    back_s = time.perf_counter() - began
    ordered = sorted(costs)
    return {
        "requests": len(costs),
        "p50_ms": round(ordered[len(ordered) // 2], 4),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 4),
        "max_ms": round(ordered[-1], 2),
        "over_5_ms": sum(cost > 5 for cost in costs),
        "back_after_s": round(back_s, 3),
    }


async def cache(num: int) -> dict[str, Any]:
    """The key of nine messages, and answers in memory."""
    store = MemoryCache(2**20)
    key = cache_key(ORIGIN, BODY)
    await store.put(key, b"x" * 2000, 600)

    rows = np.random.default_rng(0).standard_normal((2000, 768)).astype(np.float32)
    at = [0]

    async def embed(_: str) -> Any:
        return rows[at[0]]

    similar = SemanticCache(embed, threshold=0.95)
    for at[0] in range(len(rows)):
        similar.put(await similar.get(b"group", ""), b"x", 600)

    async def make_key() -> None:
        if is_cacheable(BODY):
            cache_key(ORIGIN, BODY)

    return {
        "key": await timed(num, 1, make_key),
        "get": await timed(num, 1, lambda: store.get(key)),
        "similar of 2,000": await timed(num // 20, 1, lambda: similar.get(b"group", "")),
        "put": await timed(num, 1, lambda: store.put(key, b"x" * 2000, 600)),
    }


async def measure(num: int) -> dict[str, Any]:
    """Everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "calls": num,
            "shared": await shared(folder / "shared", num),
            "cache": await cache(num),
            "redis": await redis(folder / "local", num),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Microseconds of limits and cache.")
    parser.add_argument("--calls", type=int, default=20_000)
    num = parser.parse_args().calls
    import uvloop

    print(json.dumps(uvloop.run(measure(num)), indent=2))


if __name__ == "__main__":
    main()
