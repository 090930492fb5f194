"""A gateway that runs for long, is uploaded to, reloaded and replaced while it works.

Usage: python -m benchmarks.gateway.upkeep [--checks soak lag reload restart] [--peers dialoop]
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from benchmarks.gateway import peers
from benchmarks.gateway.faults import Scene, run_checks
from benchmarks.gateway.load import closed, opened, upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gateway.results import Result

LAG = "dialoop_gateway_loop_lag_seconds"


async def soak(scene: Scene, count: int = 200_000) -> list[Result]:
    """Very many requests, one in twenty a stream: memory and descriptors stay as they are."""
    process = scene.process
    if process is None:
        raise ValueError("soak needs a gateway that was started here")
    scene.behave()
    parts = [count // 10] * 10
    memory: list[float] = []
    fds: list[int] = []
    bad = 0
    for part in parts:
        whole, streams = await asyncio.gather(
            closed(scene.target, 16, 600, warm_s=0, most=part - part // 20),
            closed(scene.stream, 2, 600, warm_s=0, most=part // 20),
        )
        bad += whole.num_bad + streams.num_bad
        memory.append(process.rss_mb())
        fds.append(process.num_fds())
    how = f"{count} requests, 18 clients; RSS after each tenth, MB: "
    how += " ".join(f"{value:.1f}" for value in memory)
    growth = memory[-1] / memory[1] - 1
    return [
        scene.found("soak_rss_growth", growth, "share", how, "<= 0.05"),
        scene.found("soak_more_fds", fds[-1] - fds[1], "count", how, "<= 8"),
        scene.found("soak_bad", bad, "count", how, "<= 0"),
    ]


async def lag(scene: Scene, seconds: float = 10) -> list[Result]:
    """Clients upload slowly and read streams: nobody else waits for them."""
    scene.behave(chunk_s=0.01)
    calm, _ = await asyncio.gather(
        opened(scene.target, 100, seconds), closed(scene.stream, 16, seconds)
    )
    before = metrics(scene)
    uploads, streams, tiny = await asyncio.gather(
        asyncio.gather(*(_uploads(scene, seconds) for _ in range(4))),
        closed(scene.stream, 16, seconds),
        opened(scene.target, 100, seconds),
    )
    after = metrics(scene)
    how = f"4 clients upload {sum(uploads)} bodies of 1 MiB in 1 s each, 16 read streams, 100 ask "
    how += f"a second; streams {streams.kinds}, others {tiny.kinds}"
    found = [
        scene.found("lag_calm_p99_ms", calm.p99_ms, "ms", "the same load without uploads"),
        scene.found("lag_others_p99_ms", tiny.p99_ms, "ms", how, "<= 20"),
        scene.found("lag_bad", tiny.num_bad + streams.num_bad, "count", how, "<= 0"),
    ]
    if LAG in after:
        p99 = 1000 * quantile(before, after, LAG, 0.99)
        found.append(scene.found("loop_lag_p99_ms", p99, "ms", how, "<= 20"))
    return found


async def _uploads(scene: Scene, seconds: float) -> int:
    loop = asyncio.get_running_loop()
    stop, count = loop.time() + seconds, 0
    while loop.time() < stop:
        status = await upload(scene.target, 2**20, 1.0)
        if status != 200:
            raise RuntimeError(f"the upload was answered with status {status}")
        count += 1
    return count


async def reload(scene: Scene, count: int = 5) -> list[Result]:
    """Our gateway gets new configurations while it works: nobody notices."""
    process = _ours(scene)
    job = Path(process.command[-1])
    took: list[float] = []

    def change() -> None:
        plain = json.loads(job.read_text(encoding="utf-8"))
        for number in range(count):
            time.sleep(1)
            plain["patience"] = {"stall_s": 20.0 + number}
            job.write_text(json.dumps(plain), encoding="utf-8")
            words = [sys.executable, "-m", "dialoop.cli.main", "gateway", "reload", str(job)]
            began = time.monotonic()
            subprocess.run(words, check=True, env=peers.environment(), capture_output=True)  # noqa: S603
            took.append(time.monotonic() - began)

    found = await _during(scene, change, 2.5 * count, f"{count} reloads")
    how = f"the slowest of {count}, the command's own start included"
    return [*found, scene.found("reload_s", max(took), "s", how)]


async def restart(scene: Scene, count: int = 3) -> list[Result]:
    """Our gateway is replaced by a new process while it works: nobody notices."""
    running = [_ours(scene).process]

    def replace() -> None:
        for _ in range(count):
            time.sleep(1)
            words = [*_ours(scene).command, "--replace"]
            new = subprocess.Popen(words, env=peers.environment(), start_new_session=True)  # noqa: S603
            running.append(new)
            running[-2].wait(60)

    try:
        return await _during(scene, replace, 10.0 * count, f"{count} replacements")
    finally:
        for process in running[1:]:
            peers.end(process)


async def _during(
    scene: Scene, change: Callable[[], None], most_s: float, what: str
) -> list[Result]:
    """Clients with kept and with new connections, and streams of 1 s, while something changes."""
    scene.behave(chunk_s=0.02)
    changing = asyncio.create_task(asyncio.to_thread(change))
    kept, new, streams = await asyncio.gather(
        opened(scene.target, 60, most_s, warm_s=0),
        opened(scene.target, 30, most_s, warm_s=0, keeps=False, seed=1),
        opened(scene.stream, 10, most_s, warm_s=0, seed=2),
    )
    await changing
    kinds = {"kept": kept.kinds, "new": new.kinds, "streams": streams.kinds}
    how = f"{what} in {most_s:g} s under 100 requests a second: {kinds}"
    name = what.partition(" ")[2]
    bad = kept.num_bad + new.num_bad + streams.num_bad
    return [
        scene.found(f"{name}_bad", bad, "count", how, "<= 0"),
        scene.found(f"{name}_p99_ms", kept.p99_ms, "ms", how),
    ]


def _ours(scene: Scene) -> peers.RunningPeer:
    if scene.process is None or not scene.process.name.startswith("dialoop"):
        raise ValueError(f"{scene.who}: only our own gateway knows how to do this")
    return scene.process


def metrics(scene: Scene) -> str:
    """The text of `GET /metrics`; empty where there is none."""
    parts = urlsplit(scene.target.url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    connection.request("GET", "/metrics", headers={"authorization": f"Bearer {scene.target.key}"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return text if response.status == 200 else ""


def quantile(before: str, after: str, name: str, share: float) -> float:
    """An upper bound of a quantile of what a histogram counted between two readings of it."""
    counts = _buckets(after, name)
    for bound, count in _buckets(before, name).items():
        counts[bound] = counts.get(bound, 0) - count
    total = counts.get(math.inf, 0)
    return next((b for b in sorted(counts) if counts[b] >= share * total), math.nan)


def _buckets(text: str, name: str) -> dict[float, float]:
    """Cumulative counts by upper bound, over all labels."""
    found: dict[float, float] = {}
    for labels, count in re.findall(rf"^{name}_bucket\{{(.*)\}} (\S+)", text, re.MULTILINE):
        bound = float(re.search(r'le="([^"]+)"', labels)[1])  # type: ignore[index]
        found[bound] = found.get(bound, 0) + float(count)
    return found


CHECKS = {check.__name__: check for check in (soak, lag, reload, restart)}


if __name__ == "__main__":
    run_checks(__doc__, CHECKS, ("soak", "lag"), num_engines=1)
