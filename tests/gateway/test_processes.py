"""`dialoop gateway` as processes: ends, deaths, new configurations, successors, all under load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from benchmarks.gateway import engine as fake

from dialoop.core import env

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

TOKENS = 20
BODY = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "hello"}],
    "stream": True,
    "max_tokens": TOKENS,
}


@dataclass
class Place:
    """Where a gateway keeps its things in a test."""

    folder: Path
    engine: fake.RunningEngine

    def environment(self) -> dict[str, str]:
        """That of its processes."""
        return env.variables(TMPDIR=str(self.folder), DIALOOP_HOME=str(self.folder / "home"))

    def job(self, **settings: Any) -> Path:
        """A configuration in a file."""
        wanted: dict[str, Any] = {
            "engines": [self.engine.url + "/v1"],
            "port": 0,
            "require_keys": False,
            "traces": {"store": False, "access_log": False},
        }
        file = self.folder / f"job-{time.monotonic_ns()}.json"
        file.write_text(json.dumps(wanted | settings))
        return file

    def command(self, *words: str) -> list[str]:
        """A command of dialoop."""
        return [sys.executable, "-c", "from dialoop.cli.main import entry; entry()", *words]


@dataclass
class Gateway:
    """A gateway's first process."""

    place: Place
    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def status(self) -> dict[str, Any]:
        """What `dialoop gateway status` says."""
        return self.do("status", f"--port={self.port}")

    def do(self, verb: str, *words: str) -> dict[str, Any]:
        """An order to it."""
        done = subprocess.run(
            self.place.command("gateway", verb, *words, "--json"),
            env=self.place.environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def wait(self, limit_s: float = 20) -> int:
        """Its exit code."""
        return self.process.wait(limit_s)


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    """A folder and an engine."""
    with fake.running() as engine:
        engine.behave(chunk_s=0.02)
        yield Place(tmp_path, engine)


@contextmanager
def gateway(place: Place, *words: str, **settings: Any) -> Generator[Gateway]:
    """A gateway that answers, until the end of the block."""
    log = place.folder / f"log-{time.monotonic_ns()}"
    command = place.command("gateway", str(place.job(**settings)), *words)
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=place.environment(), stdout=out, stderr=out)
    found = Gateway(place, process, log)
    try:
        until = time.monotonic() + 40
        while not (said := re.search(r"erving at http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        found.port = int(said[1])
        yield found
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


@dataclass
class Load:
    """Clients that ask one after the other; what became of their requests."""

    url: str
    whole: int = 0
    bad: list[str] = field(default_factory=list)
    is_over: bool = False

    async def client(self, *, keeps: bool) -> None:
        """One client, with a connection of its own each time unless it keeps one."""
        kept = httpx.AsyncClient(base_url=self.url, timeout=30)
        while not self.is_over:
            headers = {} if keeps else {"connection": "close"}
            try:
                got = await kept.post("/v1/chat/completions", json=BODY, headers=headers)
            except httpx.HTTPError as error:
                self.bad.append(repr(error))
                continue
            text = got.text
            is_whole = fake.answer(TOKENS).split()[-1] in text and '"stop"' in text
            if got.status_code == 200 and is_whole and text.endswith("data: [DONE]\n\n"):
                self.whole += 1
            else:
                self.bad.append(f"{got.status_code}: {text[-200:]}")
        await kept.aclose()

    async def during(self, work: Any, num: int = 8) -> Any:
        """Ask while a function runs in a thread."""
        clients = [asyncio.create_task(self.client(keeps=bool(n % 2))) for n in range(num)]
        await asyncio.sleep(0.5)
        try:
            return await asyncio.to_thread(work)
        finally:
            await asyncio.sleep(0.5)
            self.is_over = True
            await asyncio.gather(*clients)


def is_alive(pid: int) -> bool:
    """Whether a process runs, or is only waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(holds: Any, limit_s: float = 20) -> None:
    """Wait until something holds."""
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.05)


def test_a_signal_drains_and_a_second_one_stops(place: Place):
    with gateway(place, workers=2) as first:
        with httpx.stream("POST", first.url + "/v1/chat/completions", json=BODY) as answer:
            lines = answer.iter_lines()
            next(lines)
            first.process.terminate()
            soon(lambda: b"draining" in first.log.read_bytes())
            with pytest.raises(httpx.ConnectError):
                httpx.get(first.url + "/live")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert first.wait() == 0, first.log.read_text()
    place.engine.behave(chunk_s=1)
    with (
        gateway(place) as second,
        httpx.stream("POST", second.url + "/v1/chat/completions", json=BODY),
    ):
        (worker,) = second.status()["workers"]
        second.process.terminate()
        soon(lambda: b"draining" in second.log.read_bytes())
        assert second.process.poll() is None
        second.process.terminate()
        second.wait(5)
        assert not is_alive(worker)


def test_a_worker_that_dies_is_started_again(place: Place):
    with gateway(place, workers=2) as running:
        before = running.status()["workers"]
        os.kill(before[0], signal.SIGKILL)
        soon(lambda: running.status()["restarts"] == 1 and len(running.status()["workers"]) == 2)
        after = running.status()["workers"]
        soon(lambda: before[0] not in running.status()["workers"])
        assert before[1] in after
        assert httpx.post(running.url + "/v1/chat/completions", json=BODY).status_code == 200


def test_workers_leave_when_their_parent_is_killed(place: Place):
    with gateway(place, workers=2) as running:
        workers = running.status()["workers"]
        running.process.kill()
        running.wait()
        soon(lambda: not any(map(is_alive, workers)))
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url + "/live")


def test_a_new_configuration_under_load_drops_nothing(place: Place):
    with fake.running("other") as other, gateway(place, workers=2) as running:
        other.behave(chunk_s=0.02)
        load = Load(running.url)

        def work() -> None:
            began = time.monotonic()
            for engines in ([other.url + "/v1"], [place.engine.url + "/v1", other.url + "/v1"]):
                job = place.job(engines=engines, port=running.port, workers=2)
                changed = running.do("reload", str(job))["changed"]
                assert changed == ["engines"]
            assert time.monotonic() - began < 20

        asyncio.run(load.during(work))
        assert not load.bad
        assert load.whole > 10
        assert other.report()["counts"]["requests"] > 5


def test_a_configuration_that_cannot_be_had_changes_nothing(place: Place):
    with gateway(place) as running:
        job = place.job(port=running.port, guard="no_such_module:make")
        done = subprocess.run(
            place.command("gateway", "reload", str(job)),
            env=place.environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert b"no_such_module" in done.stderr
        assert httpx.post(running.url + "/v1/chat/completions", json=BODY).status_code == 200


def test_a_successor_under_load_drops_and_refuses_nothing(place: Place):
    with gateway(place, workers=2) as first, ExitStack() as successors:
        load = Load(first.url)

        def work() -> Gateway:
            again = gateway(place, "--replace", port=first.port, workers=2)
            second = successors.enter_context(again)
            assert first.wait() == 0, first.log.read_text()
            return second

        second = asyncio.run(load.during(work))
        assert not load.bad
        assert load.whole > 10
        assert second.status()["pid"] == second.process.pid


def test_a_successor_that_cannot_start_leaves_the_old_one(place: Place):
    with gateway(place) as first:
        job = place.job(port=first.port, guard="no_such_module:make")
        done = subprocess.run(
            place.command("gateway", str(job), "--replace"),
            env=place.environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert first.status()["pid"] == first.process.pid
        assert httpx.post(first.url + "/v1/chat/completions", json=BODY).status_code == 200
