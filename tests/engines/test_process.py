"""The parent's side: death, frost, draining and the end of a worker, and of its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.engines.contract import GREEDY, PROMPTS, answer, expected, opened

from dialoop.core.errors import MachineError, UpstreamError
from dialoop.engines import Request, Sampling
from dialoop.engines.process import ProcessEngine
from dialoop.engines.worker import WorkerJob

LONG = Request(PROMPTS[0], Sampling(max_tokens=450, temperature=0.0))


def run(checkpoint: Path, work, **settings: object):
    """Run `work(engine)` with a transformers engine of its own."""

    async def whole():
        engine = opened(checkpoint, "transformers", **settings)
        await engine.start()
        try:
            return await asyncio.wait_for(work(engine), 60)
        finally:
            await engine.stop()

    return asyncio.run(whole())


def test_death_of_the_worker_ends_every_request_with_an_error(checkpoint: Path) -> None:
    async def work(engine: ProcessEngine):
        streams = [engine.generate(LONG) for _ in range(3)]
        for deltas in streams:
            await anext(deltas)
        os.kill(engine.pid, signal.SIGKILL)
        for deltas in streams:
            with pytest.raises(UpstreamError, match=r"has died \(signal 9\)"):
                async for _ in deltas:
                    pass
        with pytest.raises(UpstreamError, match="has died"):
            await engine.health()

    run(checkpoint, work)


def test_a_frozen_worker_is_told_from_a_busy_one(checkpoint: Path) -> None:
    async def work(engine: ProcessEngine):
        deltas = engine.generate(LONG)
        await anext(deltas)
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(UpstreamError, match="has said nothing for"):
            async for _ in deltas:
                pass

    run(checkpoint, work, stall_s=1.5)


def test_drain_lets_open_requests_end_and_refuses_new_ones(checkpoint: Path) -> None:
    want = expected(checkpoint, PROMPTS[0], 16)

    async def work(engine: ProcessEngine):
        first = engine.generate(Request(PROMPTS[0], GREEDY))
        tokens = list((await anext(first)).ids)
        drained = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(UpstreamError, match="shutting down"):
            await answer(engine, Request(PROMPTS[1], GREEDY))
        assert not drained.done()
        tokens += [token async for delta in first for token in delta.ids]
        await drained
        return tokens

    assert run(checkpoint, work) == want


def test_stop_ends_the_process_and_open_requests(checkpoint: Path) -> None:
    async def work(engine: ProcessEngine):
        deltas = engine.generate(LONG)
        await anext(deltas)
        await engine.stop()
        with pytest.raises(UpstreamError, match="was stopped"):
            async for _ in deltas:
                pass
        with pytest.raises(ProcessLookupError):
            os.kill(engine.pid, 0)

    run(checkpoint, work)


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.engines.contract import opened

async def main():
    engine = opened(Path(sys.argv[1]), "transformers")
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_death_of_the_parent_ends_the_worker(checkpoint: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(checkpoint)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while _is_alive(worker):
        assert time.monotonic() < deadline, "the worker lives on without its parent"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_model_that_cannot_be_loaded_is_the_error_of_start(checkpoint: Path) -> None:
    job = WorkerJob("openvino", str(checkpoint), 512, "fp32", "cpu", 1, 4, 1)
    pytest.importorskip("openvino_genai")

    async def start() -> None:
        await ProcessEngine(job).start()

    with pytest.raises(MachineError, match="OpenVINO cannot load"):
        asyncio.run(start())


def test_a_worker_that_dies_while_loading_is_told(checkpoint: Path) -> None:
    job = WorkerJob("no_such_engine", str(checkpoint), 512, "fp32", "cpu", 1, 4, 1)

    async def start() -> None:
        await ProcessEngine(job).start()

    with pytest.raises(UpstreamError, match=r"has died \(exit code 1\)"):
        asyncio.run(start())
