"""Speed of gateways before a fake engine, ours and others in one run; a table, and JSON.

Usage: python -m benchmarks.gateway.speed --peers passthrough litellm sglang-router [--seconds 6]

The gateway has one core to itself; engine and load share another. `direct` asks the engine without
a gateway: what engine and load take. Rates come from a closed loop; added latency from an open one
at half the gateway's best rate, less what the engine alone takes at that rate.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from benchmarks.gateway import engine as fake
from benchmarks.gateway.load import Report, Target, closed, opened
from benchmarks.gateway.peers import PEERS, running

from dialoop.core.device import cpu_name

if TYPE_CHECKING:
    from collections.abc import Coroutine

Row = dict[str, float]
PACED_S = 0.005
"""Between the chunks of a paced stream: apart, so that none waits for the next unseen."""


@dataclass(frozen=True, slots=True)
class Result:
    """One figure."""

    name: str
    who: str
    value: float
    unit: str
    conditions: str
    device: str
    date: str


def run(work: Coroutine[Any, Any, Report]) -> Report:
    """Run load; answers that are not whole are said on stderr."""
    report = uvloop.run(work)
    if report.num_bad:
        print(f"  not whole: {report.kinds}", file=sys.stderr)
    return report


def measure(at: Target, engine: fake.RunningEngine, seconds: float, direct: Target | None) -> Row:
    """All figures of one gateway, once.

    Args:
        at: the gateway.
        engine: behind it.
        seconds: of each part.
        direct: the engine itself, to compare latency with; None when `at` is the engine.
    """
    stream = Target(at.url, at.key, stream=True)
    engine.behave()
    row: Row = {}
    for clients in (1, 16, 64):
        report = run(closed(at, clients, seconds))
        row[f"json_c{clients}_per_s"] = report.per_s
        row[f"json_c{clients}_p50_ms"] = report.p50_ms
        row[f"json_c{clients}_p99_ms"] = report.p99_ms
        row["json_bad"] = row.get("json_bad", 0) + report.num_bad
    for clients in (1, 16):
        report = run(closed(stream, clients, seconds))
        row[f"stream_c{clients}_per_s"] = report.per_s
        row[f"stream_c{clients}_p50_ms"] = report.p50_ms
        row["stream_bad"] = row.get("stream_bad", 0) + report.num_bad
    engine.behave(chunk_s=PACED_S)
    row |= _paced(stream, row["stream_c16_per_s"], seconds)
    row |= {"first_p50_ms": _first(stream, seconds)}
    if direct:
        row["added_first_p50_ms"] = row["first_p50_ms"] - _first(
            Target(direct.url, stream=True), seconds
        )
        engine.behave()
        row |= _added(at, direct, row["json_c16_per_s"] / 2, seconds)
    return row


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
    return next((end for end in ("per_s", "ms", "mb") if name.endswith(end)), "count")


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
        direct = Target(engine.url)
        for number in range(options.repeat):
            for name in runs:
                print(f"run {number + 1}: {name}", file=sys.stderr)
                loads.append(os.getloadavg()[0])
                if name == "direct":
                    runs[name].append(measure(direct, engine, options.seconds, None))
                    continue
                engine.behave()
                with running(name, [engine.url], folder, cpu=gateway_cpu) as peer:
                    row = measure(Target(peer.url, peer.key), engine, options.seconds, direct)
                    runs[name].append(row | {"rss_mb": peer.rss_mb()})
    middle = {who: _medians(found) for who, found in runs.items()}
    names = list(dict.fromkeys(name for row in middle.values() for name in row))
    print(table(middle, names))
    if options.out:
        _write(options.out, middle, f"{options.seconds} s, median of {options.repeat}", loads)


def _medians(rows: list[Row]) -> Row:
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


def _write(path: Path, rows: dict[str, Row], how: str, loads: list[float]) -> None:
    load = f"load average before each run {min(loads):.1f} to {max(loads):.1f}"
    conditions = f"gateway alone on one core, engine and load on another; {how}; {load}"
    device = f"{cpu_name()}, Python {platform.python_version()}"
    date = dt.datetime.now(dt.UTC).date().isoformat()
    results = [
        Result(name, who, value, unit(name), conditions, device, date)
        for who, row in rows.items()
        for name, value in row.items()
    ]
    text = json.dumps([asdict(result) for result in results], indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
