"""What becomes of answers when engines die, freeze or break off; of engines when clients leave.

Usage: python -m benchmarks.gateway.faults --peers dialoop passthrough [--checks death_mid_stream]

Each check stands before engines of its own, strikes one of them, and says what the clients saw.
An answer is truthful if it is whole or says that it failed: `error_event` of a stream, a status.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from benchmarks.gateway import engine as fake
from benchmarks.gateway import peers, results
from benchmarks.gateway.load import Client, Numbers, Reply, Target, closed, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
    from typing import Any

    from benchmarks.gateway.results import Result

STALL_S = 2.0
"""The patience with silent streams that our gateway is given."""
CHAOS: dict[str, object] = {
    "patience": {"stall_s": STALL_S, "first_token_s": 8.0},
    "health": {"interval_s": 0.5, "timeout_s": 0.5},
}
_GIVE_UP_S = 15.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A gateway with its engines, under a check."""

    who: str
    target: Target
    engines: list[fake.RunningEngine]
    process: peers.RunningPeer | None = None
    """None: a gateway that was started elsewhere."""

    @property
    def stream(self) -> Target:
        """The same gateway, asked for streams."""
        return replace(self.target, stream=True)

    def behave(self, fault: fake.Fault | fake.FaultKind | None = None, **behaviour: float) -> None:
        """Let all engines behave so."""
        for engine in self.engines:
            engine.behave(fault, **behaviour)

    def found(self, name: str, value: float, unit: str, conditions: str, bar: str = "") -> Result:
        """A figure of this gateway."""
        return results.result(name, self.who, value, unit, conditions, bar)


async def struck(
    target: Target, count: int, after_s: float, strike: Callable[[], None]
) -> tuple[list[tuple[str, Reply]], float]:
    """Ask many at once and strike while they wait: what they saw, and when it was struck."""
    numbers = Numbers(target)
    clients = [Client(target.address, _GIVE_UP_S) for _ in range(count)]
    asked = [asyncio.create_task(client.ask(numbers.next())) for client in clients]
    await asyncio.sleep(after_s)
    strike()
    at = time.perf_counter()
    replies = await asyncio.gather(*asked)
    for client in clients:
        client.close()
    return [(reply.kind(target.text, target.stream), reply) for reply in replies], at


def _share(kinds: list[str], *good: str) -> float:
    return sum(kind in good for kind in kinds) / len(kinds) if kinds else math.nan


def _latest(replies: list[Reply], at: float) -> float:
    """Seconds from a moment to the last end of these."""
    return max((reply.began + reply.seconds - at for reply in replies), default=math.nan)


def _counted(kinds: list[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


async def death_before_first(scene: Scene) -> list[Result]:
    """An engine is killed before it answers: another one answers."""
    found: list[Result] = []
    for target, what in ((scene.target, "json"), (scene.stream, "stream")):
        scene.behave(first_s=0.5)
        kill = _killer(scene.engines[0])
        seen, at = await struck(target, 40, 0.25, kill)
        kinds = [kind for kind, _ in seen]
        firsts = [r.began + r.first_s - at - 0.5 for k, r in seen if k == "whole"]
        how = f"40 at once, SIGKILL of 1 engine of 2: {_counted(kinds)}"
        name = f"death_before_first_{what}"
        found.append(scene.found(f"{name}_whole", _share(kinds, "whole"), "share", how, ">= 1"))
        worst = max(firsts, default=math.nan)
        found.append(scene.found(f"{name}_lost_s", worst, "s", how, "<= 1"))
        await _revive(scene)
    return found


async def death_mid_stream(scene: Scene) -> list[Result]:
    """An engine is killed while it streams: its streams end, and say so."""
    scene.behave(chunk_s=0.02)
    seen, at = await struck(scene.stream, 40, 0.4, _killer(scene.engines[0]))
    kinds = [kind for kind, _ in seen]
    hit = [(kind, reply) for kind, reply in seen if kind != "whole"]
    how = f"40 streams, SIGKILL of 1 engine of 2: {_counted(kinds)}"
    truthful = _share([kind for kind, _ in hit], "error_event")
    late = _latest([reply for _, reply in hit], at)
    await _revive(scene)
    return [
        scene.found("death_mid_stream_hit", len(hit), "count", how, ">= 1"),
        scene.found("death_mid_stream_truthful", truthful, "share", how, ">= 1"),
        scene.found("death_mid_stream_end_s", late, "s", how, "<= 2"),
    ]


async def broken_streams(scene: Scene) -> list[Result]:
    """A stream breaks off in each of the ways there are: it ends, and says so."""
    ways: list[fake.FaultKind]
    ways = ["reset_after", "close_after", "cut_line", "no_done", "error_event"]
    found: list[Result] = []
    for way in ways:
        scene.behave(way, chunk_s=0.01)
        seen, _ = await struck(scene.stream, 8, 0, lambda: None)
        kinds = [kind for kind, _ in seen]
        how = f"8 streams broken after 5 chunks: {_counted(kinds)}"
        share = _share(kinds, "error_event")
        found.append(scene.found(f"broken_{way}_truthful", share, "share", how, ">= 1"))
        await _recover(scene)
    return found


async def freeze(scene: Scene) -> list[Result]:
    """An engine is stopped while it streams; meanwhile others answer as before."""
    scene.behave(chunk_s=0.02)
    frozen = scene.engines[0]
    seen, at = await struck(scene.stream, 40, 0.4, lambda: frozen.signal(signal.SIGSTOP))
    kinds = [kind for kind, _ in seen]
    hit = [(kind, reply) for kind, reply in seen if kind != "whole"]
    how = f"40 streams, SIGSTOP of 1 engine of 2, stall_s {STALL_S:g}: {_counted(kinds)}"
    truthful = _share([kind for kind, _ in hit], "error_event")
    late = _latest([reply for _, reply in hit], at)
    scene.engines[1].behave()
    meanwhile = await opened(scene.target, 100, 3, warm_s=0, timeout_s=_GIVE_UP_S)
    during = f"100 chats a second for 3 s beside the frozen engine: {meanwhile.kinds}"
    whole = 1 - meanwhile.num_bad / sum(meanwhile.kinds.values())
    frozen.signal(signal.SIGCONT)
    await _settle(scene)
    return [
        scene.found("freeze_mid_stream_hit", len(hit), "count", how, ">= 1"),
        scene.found("freeze_mid_stream_truthful", truthful, "share", how, ">= 1"),
        scene.found("freeze_mid_stream_end_s", late, "s", how, f"<= {STALL_S + 1:g}"),
        scene.found("freeze_others_whole", whole, "share", during, ">= 1"),
        scene.found("freeze_others_p99_ms", meanwhile.p99_ms, "ms", during),
    ]


async def freeze_before_first(scene: Scene) -> list[Result]:
    """An engine is stopped before it answers: another one answers."""
    scene.behave(first_s=0.3)
    frozen = scene.engines[0]
    seen, at = await struck(scene.target, 40, 0.1, lambda: frozen.signal(signal.SIGSTOP))
    frozen.signal(signal.SIGCONT)
    kinds = [kind for kind, _ in seen]
    how = f"40 chats, SIGSTOP of 1 engine of 2, health checks each 0.5 s: {_counted(kinds)}"
    late = _latest([reply for _, reply in seen], at)
    await _settle(scene)
    return [
        scene.found("freeze_before_first_whole", _share(kinds, "whole"), "share", how, ">= 1"),
        scene.found("freeze_before_first_s", late, "s", how, "<= 4"),
    ]


async def silent_pings(scene: Scene) -> list[Result]:
    """Streams go silent but for SSE comments: they are stalled all the same."""
    scene.behave("freeze_pinging")
    seen, at = await struck(scene.stream, 8, 0, lambda: None)
    kinds = [kind for kind, _ in seen]
    how = f"8 streams, comments each 0.1 s, stall_s {STALL_S:g}: {_counted(kinds)}"
    late = _latest([reply for _, reply in seen], at)
    await _settle(scene)
    return [
        scene.found("pings_truthful", _share(kinds, "error_event"), "share", how, ">= 1"),
        scene.found("pings_end_s", late, "s", how, f"<= {STALL_S + 1:g}"),
    ]


async def bad_requests(scene: Scene) -> list[Result]:
    """Engines refuse many requests with 400: they stay in use."""
    scene.behave(fake.Fault("status", status=400))
    refused = await closed(scene.target, 8, 30, warm_s=0, most=200)
    scene.behave()
    seen, _ = await struck(scene.target, 20, 0, lambda: None)
    kinds = [kind for kind, _ in seen]
    how = f"20 chats after {refused.kinds}: {_counted(kinds)}"
    return [scene.found("after_400s_whole", _share(kinds, "whole"), "share", how, ">= 1")]


async def aborts(scene: Scene) -> list[Result]:
    """A client leaves before the first token, in mid-stream, and while a whole answer is made."""
    found: list[Result] = []
    cases: list[tuple[str, Target, dict[str, float]]] = [
        ("before_first", scene.stream, {"first_s": 20}),
        ("mid_stream", scene.stream, {"chunk_s": 0.2}),
        ("json", scene.target, {"first_s": 20}),
    ]
    for phase, target, behaviour in cases:
        late = [await _abort(scene, target, phase, behaviour) for _ in range(5)]
        how = "5 clients, one after the other; inf: the engine did not learn of it in 5 s"
        found.append(scene.found(f"abort_{phase}_s", max(late), "s", how, "<= 0.5"))
    return found


async def _abort(scene: Scene, target: Target, phase: str, behaviour: dict[str, float]) -> float:
    """Seconds from a client's leaving until the engine knows; infinity when it does not in 5 s."""
    scene.behave(None, **behaviour)
    client = Client(target.address)
    asked = asyncio.create_task(client.ask(Numbers(target).next()))
    await asyncio.sleep(0.3)
    if phase == "mid_stream":
        await asyncio.wait_for(client.answers.wait(), 10)
    left = time.monotonic()
    client.close()
    await asked
    while time.monotonic() < left + 5:
        seen = [abort for engine in scene.engines for abort in engine.report()["aborts"]]
        if seen:
            return max(0.0, seen[0]["at"] - left)
        await asyncio.sleep(0.05)
    return math.inf


async def many_aborts(scene: Scene, count: int = 10_000, at_once: int = 16) -> list[Result]:
    """Thousands of clients leave at any moment; nothing is left of them."""
    scene.behave()
    before = await _cpu_us(scene)
    fds = scene.process.num_fds() if scene.process else 0
    kept = sum(engine.report()["connections"] for engine in scene.engines)
    scene.behave(first_s=0.005, chunk_s=0.002)
    chance = random.Random(1)  # noqa: S311  a sequence that can be repeated
    left = count

    async def leave(target: Target) -> None:
        nonlocal left
        numbers = Numbers(target)
        while left > 0:
            left -= 1
            client = Client(target.address)
            asked = asyncio.create_task(client.ask(numbers.next()))
            await asyncio.sleep(chance.random() * 0.03)
            client.close()
            await asked

    targets = [scene.target, scene.stream] * (at_once // 2)
    await asyncio.gather(*(leave(target) for target in targets))
    settled = await _settle(scene)
    reports = [engine.report() for engine in scene.engines]
    num_seen = sum(report["counts"].get("aborted", 0) for report in reports)
    num_asked = sum(report["counts"].get("requests", 0) for report in reports)
    scene.behave()
    after = await _cpu_us(scene)
    await asyncio.sleep(3)
    kept = sum(engine.report()["connections"] for engine in scene.engines) - kept
    more = (scene.process.num_fds() if scene.process else 0) - fds
    how = f"{count} clients, {at_once} at once, half of them streams; engines saw {num_asked} "
    how += f"requests and {num_seen} aborts; {kept} more connections to engines are kept"
    return [
        scene.found("many_aborts_seen", num_seen, "count", how, f">= {count // 10}"),
        scene.found("many_aborts_open_after_s", settled, "s", how, "<= 2"),
        scene.found("many_aborts_more_fds", more, "count", how, "<= 16"),
        scene.found("many_aborts_cpu", after / before, "ratio", how, "<= 1.1"),
    ]


async def _cpu_us(scene: Scene) -> float:
    """CPU time of the gateway for one of many chats; NaN of one that was started elsewhere."""
    process = scene.process
    if process is None:
        return math.nan
    scene.behave()
    found: list[float] = []
    for _ in range(3):  # the least is nearest to what it costs without other work on the machine
        cpu_s, asked = process.cpu_s(), sum(engine.num_requests() for engine in scene.engines)
        await closed(scene.target, 16, 1, warm_s=0)
        asked = sum(engine.num_requests() for engine in scene.engines) - asked
        found.append(1e6 * (process.cpu_s() - cpu_s) / asked)
    return min(found)


def _killer(engine: fake.RunningEngine) -> Callable[[], None]:
    return lambda: engine.signal(signal.SIGKILL)


async def _settle(scene: Scene, most_s: float = 10) -> float:
    """Wait until no engine has a request open: how long it took; infinity when it never was."""
    began = time.monotonic()
    while time.monotonic() < began + most_s:
        if not any(engine.report()["open"] for engine in scene.engines):
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    return math.inf


async def _revive(scene: Scene) -> None:
    """Start the dead engines anew, and wait until the gateway uses all."""
    for number, engine in enumerate(scene.engines):
        if engine.process.poll() is not None:
            scene.engines[number] = fake.start(engine.name, port=engine.port)
    await _recover(scene)


async def _recover(scene: Scene, most_s: float = 20) -> None:
    """Let the engines work, and wait until the gateway uses all of them again.

    Raises:
        RuntimeError: it does not in time.
    """
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        scene.behave()
        seen, _ = await struck(scene.target, 32, 0, lambda: None)
        is_whole = all(kind == "whole" for kind, _ in seen)
        if is_whole and all(engine.num_requests() > 3 for engine in scene.engines):
            return
        await asyncio.sleep(0.25)
    raise RuntimeError(f"{scene.who} does not use all its engines after {most_s:g} s")


CHECKS = {
    check.__name__: check
    for check in (
        death_before_first,
        death_mid_stream,
        broken_streams,
        freeze,
        freeze_before_first,
        silent_pings,
        bad_requests,
        aborts,
        many_aborts,
    )
}


@contextlib.contextmanager
def staged(
    who: str,
    folder: Path,
    *,
    num_engines: int = 2,
    settings: Mapping[str, object] = CHAOS,
    cpu: int | None = None,
) -> Generator[Scene]:
    """A gateway with engines of its own.

    Args:
        who: in `peers.PEERS`.
        folder: of environments, settings and logs.
        num_engines: how many.
        settings: fields of our gateway's job; other gateways do not know them.
        cpu: the core that the gateway is bound to.
    """
    engines = [fake.start(f"engine{number}") for number in range(num_engines)]
    try:
        urls = [engine.url for engine in engines]
        with peers.running(who, urls, folder, settings=settings, cpu=cpu) as peer:
            yield Scene(who, Target(peer.url, peer.key), engines, peer)
    finally:
        for engine in engines:
            engine.signal(signal.SIGKILL)


def run_checks(
    words: str | None,
    checks: Mapping[str, Callable[[Scene], Coroutine[Any, Any, list[Result]]]],
    default: Sequence[str],
    num_engines: int = 2,
) -> None:
    """Run checks on peers; the exit code says whether ours met all bars.

    Args:
        words: of the program's help.
        checks: all of them by name.
        default: those that are run unless others are named.
        num_engines: behind the gateway.
    """
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("--peers", nargs="+", choices=list(peers.PEERS), default=["passthrough"])
    parser.add_argument("--checks", nargs="+", choices=list(checks), default=list(default))
    parser.add_argument("--folder", type=Path, help="of the peers' environments; kept")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args()
    found: list[Result] = []
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for who in options.peers:
            for name in options.checks:
                with staged(who, folder, num_engines=num_engines) as scene:
                    new = uvloop.run(checks[name](scene))
                print("\n".join(map(results.line, new)), flush=True)
                found += new
    if options.out:
        results.write(options.out, found)
    sys.exit(any(one.is_met is False for one in found if one.who == "dialoop"))


if __name__ == "__main__":
    run_checks(__doc__, CHECKS, tuple(CHECKS))
