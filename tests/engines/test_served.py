"""Engines that are servers: streams, death, adoption, adapters, on a server without a model."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dialoop.core.env import home as dialoop_home
from dialoop.core.env import variables
from dialoop.core.errors import MachineError, UpstreamError, UserError
from dialoop.engines import Request, Sampling, sessions, state
from dialoop.engines.claims import Gpu, claim, claim_gpus, claim_port
from dialoop.engines.external import EngineSpec, Launch
from dialoop.engines.served import ServedEngine
from dialoop.engines.supervisor import Patience, Program, clear_orphans
from dialoop.engines.vllm import Vllm

SERVER = str(Path(__file__).parent / "openai_server.py")
PROMPT = (5, 6, 7)
START_S = 10.0
QUICK = Patience(start_s=START_S, restarts=2, orphan_s=1.0, grace_s=1.0)


def served(
    patience: Patience = QUICK, *, stall_s: float = 60.0, words: tuple[str, ...] = ()
) -> ServedEngine:
    """An engine whose process is the server without a model."""
    engine = Vllm("vllm-cpu")
    spec = EngineSpec(
        model=Path("/nowhere"),
        name="base",
        family="llama",
        head_dim=64,
        quant=None,
        is_multimodal=False,
        max_length=4096,
        dtype="fp32",
        device="cpu",
        max_concurrent=8,
        max_adapters=1,
        max_lora_rank=8,
    )
    program = Program(
        engine="fake",
        python=sys.executable,
        launch=lambda port: Launch((SERVER, str(port), *words), {"MARK": str(stall_s)}),
        environment=variables(),
    )
    return ServedEngine(engine, spec, program, patience, stall_s, lambda _: None)


def ask(num: int, stop: tuple[int, ...] = ()) -> Request:
    return Request(PROMPT, Sampling(max_tokens=num, temperature=0.0), stop)


async def answer(engine: ServedEngine, request: Request) -> list[int]:
    return [token async for delta in engine.generate(request) for token in delta.ids]


async def facts(engine: ServedEngine) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(engine.supervisor.url + "/facts") as said:
        return await said.json()


def run(work, engine: ServedEngine | None = None) -> Any:
    """Run `work(engine)` with an engine that is started before and stopped after."""

    async def whole():
        running = engine or served()
        await running.start()
        try:
            return await asyncio.wait_for(work(running), 120)
        finally:
            await running.stop()

    return asyncio.run(whole())


async def until_open(engine: ServedEngine, num: int) -> None:
    """Return when the engine works on so many requests."""
    deadline = time.monotonic() + 5
    while (found := (await facts(engine))["open"]) != num:
        assert time.monotonic() < deadline, f"the engine works on {found} requests, not {num}"
        await asyncio.sleep(0.02)


async def until_up(engine: ServedEngine, limit_s: float) -> float:
    """Ask until the engine answers; how long it took."""
    began = time.monotonic()
    while True:
        try:
            await engine.health()
        except UpstreamError:
            assert time.monotonic() - began < limit_s, "the engine is not back"
            await asyncio.sleep(0.05)
        else:
            return time.monotonic() - began


def test_tokens_reasons_and_stop_tokens_come_over() -> None:
    async def work(engine: ServedEngine):
        whole = [delta async for delta in engine.generate(ask(3))]
        stopped = [delta async for delta in engine.generate(ask(9, stop=(10,)))]
        return whole, stopped

    whole, stopped = run(work)
    assert [(d.ids, d.finish) for d in whole] == [((8,), None), ((9,), None), ((10,), "length")]
    assert [t for d in stopped for t in d.ids] == [8, 9]
    assert stopped[-1].finish == "stop"


def test_closing_a_stream_aborts_the_work() -> None:
    async def work(engine: ServedEngine):
        async with aclosing(engine.generate(ask(2000))) as deltas:
            await anext(deltas)
            assert (await facts(engine))["open"] == 1
            assert engine.num_open == 1
        await until_open(engine, 0)
        assert engine.num_open == 0

    run(work)


def test_a_prompt_without_room_is_refused() -> None:
    async def work(engine: ServedEngine):
        with pytest.raises(UserError, match="3 prompt tokens and 4094 new ones pass the limit"):
            await answer(engine, ask(4094))

    run(work)


def test_killed_under_load_ten_times_it_comes_back_without_leaks() -> None:
    """Within its cold start and 5 s, no process left of the old one, no port kept."""

    async def work(engine: ServedEngine):
        began = time.monotonic()
        leaders: list[sessions.Identity] = []
        for _ in range(10):
            streams = [asyncio.create_task(answer(engine, ask(2000))) for _ in range(4)]
            await until_open(engine, 4)
            leaders.append(engine.supervisor.leader)
            assert len(sessions.members(leaders[-1])) >= 3  # guard, server, the server's child
            os.kill((await facts(engine))["pid"], signal.SIGKILL)
            for ended in await asyncio.gather(*streams, return_exceptions=True):
                assert isinstance(ended, UpstreamError)
            assert await until_up(engine, START_S) < cold_s + 5
            assert not sessions.members(leaders[-1])
        assert engine.supervisor.num_restarts == 10
        assert engine.failure is None
        assert held_ports() == 1
        return time.monotonic() - began

    engine = served()
    cold_s = asyncio.run(_cold_start_s())
    run(work, engine)
    assert held_ports() == 0
    assert not state.states()


async def _cold_start_s() -> float:
    engine = served(stall_s=61.0)
    began = time.monotonic()
    await engine.start()
    took = time.monotonic() - began
    await engine.stop()
    return took


def held_ports() -> int:
    """Ports that somebody has claimed."""
    names = [path.name for path in (dialoop_home() / "engines" / "claims").glob("port-*")]
    num = 0
    for name in names:
        taken = claim(name, "test")
        if taken:
            taken.release()
        num += taken is None
    return num


def test_death_of_the_guard_ends_its_session_and_the_engine_comes_back() -> None:
    async def work(engine: ServedEngine):
        old = engine.supervisor.leader
        os.kill(old.pid, signal.SIGKILL)
        await asyncio.sleep(0.3)
        await until_up(engine, START_S + 5)
        assert not sessions.members(old)

    run(work)


def test_a_frozen_engine_is_ended_and_started_again() -> None:
    async def work(engine: ServedEngine):
        deltas = engine.generate(ask(2000))
        await anext(deltas)
        old = engine.supervisor.leader
        os.kill((await facts(engine))["pid"], signal.SIGSTOP)
        with pytest.raises(UpstreamError, match="has said nothing for 1 s and was ended"):
            async for _ in deltas:
                pass
        await until_up(engine, START_S + 5)
        assert not sessions.members(old)

    run(work, served(stall_s=1.0))


def test_an_engine_that_cannot_start_says_its_last_words() -> None:
    async def work():
        await served(words=("fail",)).start()

    with pytest.raises(UpstreamError, match="MemoryError: the model does not fit") as caught:
        asyncio.run(work())
    assert "fake ended while it started" in str(caught.value)
    assert ".log" in str(caught.value)
    assert held_ports() == 0


def test_restarts_that_fail_are_given_up(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text(Path(SERVER).read_text())
    engine = served()
    engine.supervisor._program = Program(
        "fake", sys.executable, lambda p: Launch((str(server), str(p)), {}), variables()
    )

    async def work(engine: ServedEngine):
        server.write_text("raise SystemExit('RuntimeError: the disk is gone')")
        os.kill((await facts(engine))["pid"], signal.SIGKILL)
        await asyncio.wait_for(engine.wait_failed(), 30)
        assert "the disk is gone" in str(engine.failure)
        with pytest.raises(UpstreamError, match="the disk is gone"):
            await engine.health()

    run(work, engine)


def test_drain_lets_open_requests_end_and_refuses_new_ones() -> None:
    async def work(engine: ServedEngine):
        first = asyncio.create_task(answer(engine, ask(20)))
        await until_open(engine, 1)
        drained = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(UpstreamError, match="shutting down"):
            await answer(engine, ask(1))
        assert not drained.done()
        await drained
        assert len(await first) == 20

    run(work)


def test_stop_ends_every_process_and_open_requests() -> None:
    async def work(engine: ServedEngine):
        deltas = engine.generate(ask(2000))
        await anext(deltas)
        leader = engine.supervisor.leader
        await engine.stop()
        with pytest.raises(UpstreamError, match="was stopped"):
            async for _ in deltas:
                pass
        assert not sessions.members(leader)
        assert not state.states()

    run(work)


OWNER = """
import asyncio, sys
from tests.engines.test_served import QUICK, facts, served
from dataclasses import replace

async def main():
    engine = served(replace(QUICK, orphan_s=float(sys.argv[1])))
    await engine.start()
    print((await facts(engine))["pid"], engine.supervisor.leader.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def orphan(orphan_s: float) -> tuple[int, sessions.Identity]:
    """An engine whose owner was killed: its pid and its leader."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(orphan_s)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        pid, leader = map(int, owner.stdout.readline().split())
        owner.kill()
    found = sessions.identify(leader)
    assert found
    return pid, found


def test_an_engine_outlives_its_owner_and_is_taken_over() -> None:
    pid, leader = orphan(60)

    async def work(engine: ServedEngine):
        assert (await facts(engine))["pid"] == pid
        assert engine.supervisor.leader == leader
        assert await answer(engine, ask(2)) == [8, 9]
        os.kill(pid, signal.SIGKILL)  # and it is looked after as any other
        await asyncio.sleep(0.3)
        await until_up(engine, START_S + 5)

    run(work, served(Patience(START_S, 2, 60, 5)))
    assert not sessions.members(leader)


def test_an_orphan_that_nobody_takes_over_ends_by_itself() -> None:
    _, leader = orphan(1)
    deadline = time.monotonic() + 15
    while sessions.members(leader):
        assert time.monotonic() < deadline, "the orphan lives on"
        time.sleep(0.1)


def test_an_orphan_without_a_guard_is_cleared_away() -> None:
    _, leader = orphan(60)
    os.kill(leader.pid, signal.SIGKILL)
    while leader.is_alive():
        time.sleep(0.02)
    assert len(sessions.members(leader)) >= 2
    assert clear_orphans() == ["fake"]
    assert not sessions.members(leader)
    assert not state.states()


def test_an_id_that_another_process_has_now_is_never_ended() -> None:
    mine = sessions.me()
    other = sessions.Identity(mine.pid, mine.started + 1, mine.boot)
    assert not other.is_alive()
    assert not sessions.members(other)


def test_adapters_are_loaded_while_the_engine_runs_and_again_after_a_crash(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text('{"r": 8}')

    async def work(engine: ServedEngine):
        await engine.load_adapter("ada", tmp_path)
        assert engine.adapters == ("ada",)
        engine._adapter = "ada"
        assert await answer(engine, ask(2)) == [1008, 1009]
        with pytest.raises(UserError, match="`ada` is loaded already"):
            await engine.load_adapter("ada", tmp_path)
        with pytest.raises(UserError, match="1 adapters are loaded and no more may be"):
            await engine.load_adapter("bob", tmp_path)
        os.kill((await facts(engine))["pid"], signal.SIGKILL)
        await asyncio.sleep(0.3)
        await until_up(engine, START_S + 5)
        assert await answer(engine, ask(2)) == [1008, 1009]
        await engine.unload_adapter("ada")
        with pytest.raises(UserError, match="refused the request: no model ada"):
            await answer(engine, ask(2))
        config.write_text('{"r": 16}')
        with pytest.raises(UserError, match="has rank 16, and room was made for 8"):
            await engine.load_adapter("bob", tmp_path)
        with pytest.raises(UserError, match="no adapter `ada` is loaded"):
            await engine.unload_adapter("ada")

    run(work)


def test_ports_are_never_shared() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        used = other.getsockname()[1]
        first, port = claim_port("a", [used, used + 1, used + 2])
        second, another = claim_port("b", [used, used + 1, used + 2])
        assert used < port < another
        with pytest.raises(MachineError, match="no port from"):
            claim_port("c", [port])
        first.release()
        third, again = claim_port("c", [port])
        assert again == port
        second.release()
        third.release()


def test_gpus_are_never_shared_and_the_emptiest_come_first() -> None:
    gpus = [Gpu(n, f"GPU-test-{n}", "H100", 80, free, 9.0) for n, free in enumerate((10, 70, 40))]
    claims, taken = claim_gpus(gpus, 2, "vllm of process 1")
    assert [gpu.index for gpu in taken] == [1, 2]
    with pytest.raises(MachineError, match="2 GPUs are needed and 1 of 3 are free") as caught:
        claim_gpus(gpus, 2, "other")
    assert "vllm of process 1" in str(caught.value)
    with pytest.raises(MachineError, match="4 GPUs are needed and 3 may be used"):
        claim_gpus(gpus, 4, "other")
    for held in claims:
        held.release()
    again, _ = claim_gpus(gpus, 3, "other")
    for held in again:
        held.release()


def test_a_damaged_state_file_is_no_engine(home: Path) -> None:
    state.folder().mkdir(parents=True, exist_ok=True)
    damaged = state.folder() / "x.json"
    for text in ("", "[]", json.dumps({"engine": "vllm"})):
        damaged.write_text(text)
        assert state.read_state(damaged) is None
    damaged.unlink()
