"""Limits that two gateways keep together in Redis, and what they do while it is frozen.

Usage: python -m benchmarks.gateway.limits [--folder DIR] [--out FILE]

Needs `redis-server`. Both gateways are asked as fast as they answer, with one key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from benchmarks.gateway import engine as fake
from benchmarks.gateway import peers, results
from benchmarks.gateway.load import Target, closed, opened

if TYPE_CHECKING:
    from collections.abc import Generator

    from benchmarks.gateway.results import Result

PER_MINUTE = 600
SECONDS = 6.0


@contextlib.contextmanager
def redis() -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis of our own that keeps nothing: its URL and process."""
    port = peers.free_port()
    words = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        yield f"redis://127.0.0.1:{port}/0", process
    finally:
        process.kill()
        process.wait()


async def overshoot(gateways: list[Target]) -> Result:
    """How many more requests than allowed were answered within less than a minute."""
    loads = (closed(target, 8, SECONDS, warm_s=0) for target in gateways)
    reports = await asyncio.gather(*loads)
    allowed = sum(report.kinds.get("whole", 0) for report in reports)
    how = f"{PER_MINUTE} requests a minute, 2 gateways, {SECONDS:g} s: "
    how += ", ".join(str(report.kinds) for report in reports)
    share = allowed / PER_MINUTE - 1
    if not any("status_429" in report.kinds for report in reports):
        raise RuntimeError(f"the limit was not reached: {how}")
    return results.result("limit_overshoot", "dialoop", share, "share", how, "<= 0.01")


async def frozen(target: Target, process: subprocess.Popen[bytes]) -> list[Result]:
    """Latency of chats while Redis does not answer, against before."""
    before = await opened(target, 100, SECONDS)
    process.send_signal(signal.SIGSTOP)
    during = await opened(target, 100, SECONDS, warm_s=0)
    process.send_signal(signal.SIGCONT)
    after = await opened(target, 100, SECONDS, warm_s=2)
    how = f"100 chats a second; before {before.kinds}, SIGSTOP of Redis {during.kinds}, after "
    how += f"{after.kinds}; p99 {before.p99_ms}, {during.p99_ms}, {after.p99_ms} ms"
    bad = before.num_bad + during.num_bad + after.num_bad
    more = during.p99_ms - before.p99_ms
    return [
        results.result("redis_frozen_bad", "dialoop", bad, "count", how, "<= 0"),
        results.result("redis_frozen_p99_more_ms", "dialoop", more, "ms", how, "<= 50"),
    ]


def main() -> None:
    """Measure on the command line; the exit code says whether all bars were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="of settings and logs; kept")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = f"sqlite:///{folder / f'limits-{peers.free_port()}.db'}"
        url, process = stack.enter_context(redis())
        engine = stack.enter_context(fake.running())
        settings = {"redis": url, "num_gateways": 2, "database": database}
        asked: list[Target] = []
        for _ in range(2):
            running = peers.running("dialoop", [engine.url], folder, settings=settings)
            peer = stack.enter_context(running)
            asked.append(Target(peer.url, peer.key))
        found = uvloop.run(frozen(asked[0], process))
        key = peers.make_key(database, requests_per_minute=PER_MINUTE)
        time.sleep(3)  # gateways that run learn of a new key within a second or so
        found.append(uvloop.run(overshoot([replace(target, key=key) for target in asked])))
    print("\n".join(map(results.line, found)))
    if options.out:
        results.write(options.out, found)
    sys.exit(any(one.is_met is False for one in found))


if __name__ == "__main__":
    main()
