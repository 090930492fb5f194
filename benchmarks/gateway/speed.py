"""Speed of gateways before a fake engine, ours and others in one run; a table, and JSON.

Usage: python -m benchmarks.gateway.speed --peers passthrough litellm sglang-router [--seconds 6]

The gateway has one core to itself; engine and load share another. `direct` asks the engine without
a gateway: what engine and load take. Rates come from a closed loop; added latency from an open one
at half the gateway's best rate, less what the engine alone takes at that rate. On a machine with
other work, `cpu_us`, the gateway's CPU time a request, is the figure that can be trusted.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from benchmarks.gateway import engine as fake
from benchmarks.gateway.load import Report, Target, closed, opened
from benchmarks.gateway.peers import PEERS, RunningPeer, running
from benchmarks.gateway.results import line, result, write

if TYPE_CHECKING:
    from collections.abc import Coroutine

Row = dict[str, float]
PACED_S = 0.005
"""Between the chunks of a paced stream: apart, so that none waits for the next unseen."""


def run(work: Coroutine[Any, Any, Report]) -> Report:
    """Run load; answers that are not whole are said on stderr."""
    report = uvloop.run(work)
    if report.num_bad:
        print(f"  not whole: {report.kinds}", file=sys.stderr)
    return report


def measure(
    at: Target, engine: fake.RunningEngine, seconds: float, peer: RunningPeer | None
) -> Row:
    """All figures of one gateway, once.

    Args:
        at: the gateway.
        engine: behind it.
        seconds: of each part.
        peer: the gateway's process; None when `at` is the engine itself.
    """
    stream, direct = replace(at, stream=True), Target(engine.url)
    engine.behave()
    row: Row = {}
    for clients in (1, 16, 64):
        report, row[f"json_c{clients}_cpu_us"] = _costed(at, clients, seconds, engine, peer)
        row[f"json_c{clients}_per_s"] = report.per_s
        row[f"json_c{clients}_p50_ms"] = report.p50_ms
        row[f"json_c{clients}_p99_ms"] = report.p99_ms
        row["json_bad"] = row.get("json_bad", 0) + report.num_bad
    for clients in (1, 16):
        report, row[f"stream_c{clients}_cpu_us"] = _costed(stream, clients, seconds, engine, peer)
        row[f"stream_c{clients}_per_s"] = report.per_s
        row[f"stream_c{clients}_p50_ms"] = report.p50_ms
        row["stream_bad"] = row.get("stream_bad", 0) + report.num_bad
    engine.behave(chunk_s=PACED_S)
    row |= _paced(stream, row["stream_c16_per_s"], seconds)
    row["first_p50_ms"] = _first(stream, seconds)
    if peer:
        alone = _first(replace(direct, stream=True), seconds)
        row["added_first_p50_ms"] = row["first_p50_ms"] - alone
        engine.behave()
        row |= _added(at, direct, row["json_c16_per_s"] / 2, seconds)
        row["rss_mb"] = peer.rss_mb()
    return row


def _costed(
    at: Target,
    clients: int,
    seconds: float,
    engine: fake.RunningEngine,
    peer: RunningPeer | None,
) -> tuple[Report, float]:
    """A closed loop, and the CPU time in us that the gateway took for each of its requests."""
    before = peer.cpu_s() if peer else math.nan, engine.num_requests()
    report = run(closed(at, clients, seconds))
    after = peer.cpu_s() if peer else math.nan, engine.num_requests()
    return report, 1e6 * (after[0] - before[0]) / max(1, after[1] - before[1])


def _paced(stream: Target, best: float, seconds: float) -> Row:
    """Streams whose chunks come one by one, enough at once to fill the gateway."""
    length_s = PACED_S * 52
    clients = min(512, max(16, math.ceil(best * length_s * 1.2)))
    report = run(closed(stream, clients, seconds, warm_s=2 * length_s))
    return {"paced_per_s": report.per_s, "paced_clients": clients}


def _first(stream: Target, seconds: float) -> float:
    return run(closed(stream, 1, seconds)).first_p50_ms


def _added(at: Target, direct: Target, rate: float, seconds: float) -> Row:
    rate = max(1.0, rate)
    ours, alone = (run(opened(target, rate, seconds)) for target in (at, direct))
    return {
        "half_load_per_s": rate,
        "half_load_p50_ms": ours.p50_ms,
        "half_load_p99_ms": ours.p99_ms,
        "added_p50_ms": ours.p50_ms - alone.p50_ms,
        "added_p99_ms": ours.p99_ms - alone.p99_ms,
    }


def unit(name: str) -> str:
    """The unit that a figure's name ends with."""
    return next((end for end in ("per_s", "us", "ms", "mb") if name.endswith(end)), "count")


BARS = {
    "json_bad": "<= 0",
    "stream_bad": "<= 0",
    "stream_c16_per_s": ">= 350",
    "added_p50_ms": "<= 2",
    "added_p99_ms": "<= 10",
    "added_first_p50_ms": "<= 3",
}
JSON_BARS = {"dialoop": 1000, "dialoop-bare": 1500}
TIMES_LITELLM = 15


def bar(name: str, who: str, rows: dict[str, Row]) -> str:
    """What our gateway must reach; the rate also by comparison, where LiteLLM ran beside it."""
    if who not in JSON_BARS:
        return ""
    if name == "json_c16_per_s":
        peer = rows.get("litellm", {}).get(name, 0) if who == "dialoop" else 0
        return f">= {max(JSON_BARS[who], TIMES_LITELLM * peer):g}"
    return BARS.get(name, "")


def table(rows: dict[str, Row], names: list[str]) -> str:
    """Figures by who, as text."""
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{who:>16}" for who in rows)]
    lines += [
        f"{name:<{width}}" + "".join(f"{row.get(name, math.nan):>16.2f}" for row in rows.values())
        for name in names
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure `direct` and the peers in turn, `--repeat` times over; medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=["passthrough"])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="of the peers' environments; kept")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args()
    gateway_cpu, load_cpu = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {load_cpu})
    runs: dict[str, list[Row]] = {name: [] for name in ("direct", *options.peers)}
    loads: list[float] = []
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        engine = stack.enter_context(fake.running(cpu=load_cpu))
        for number in range(options.repeat):
            for name in runs:
                print(f"run {number + 1}: {name}", file=sys.stderr)
                loads.append(os.getloadavg()[0])
                if name == "direct":
                    runs[name].append(measure(Target(engine.url), engine, options.seconds, None))
                    continue
                engine.behave()
                with running(name, [engine.url], folder, cpu=gateway_cpu) as peer:
                    target = Target(peer.url, peer.key)
                    runs[name].append(measure(target, engine, options.seconds, peer))
    middle = {who: _medians(found) for who, found in runs.items()}
    names = list(dict.fromkeys(name for row in middle.values() for name in row))
    print(table(middle, names))
    how = f"gateway alone on one core, engine and load on another; {options.seconds:g} s each"
    how += f", median of {options.repeat}; load average before {min(loads):.1f}-{max(loads):.1f}"
    found = [
        replace(
            result(name, who, value, unit(name), how, bar(name, who, middle)),
            runs=tuple(round(row[name], 3) for row in runs[who]),
        )
        for who, row in middle.items()
        for name, value in row.items()
    ]
    print("\n".join(line(one) for one in found if one.bar))
    if options.out:
        write(options.out, found)


def _medians(rows: list[Row]) -> Row:
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


if __name__ == "__main__":
    main()
