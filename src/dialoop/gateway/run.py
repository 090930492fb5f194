"""`dialoop gateway`: workers on one port, kept alive, given new configurations, handed over."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.core import env
from dialoop.core.errors import DialoopError, MachineError, UpstreamError, UserError
from dialoop.core.events import Note, Stage
from dialoop.core.schema import Result
from dialoop.gateway import control
from dialoop.serve.run import bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event
    from dialoop.gateway.spec import GatewayJob, ReloadJob, StatusJob

log = logging.getLogger(__name__)

Json = dict[str, Any]

_START_S = 60.0
_FIXED = (
    "host", "port", "workers", "tls_certificate", "tls_key", "database", "database_s", "redis",
    "num_gateways", "require_keys", "cache", "traces",
)  # fmt: skip
"""What a running gateway does not change."""


class GatewayResult(Result, frozen=True):
    """What a gateway did."""

    url: str
    seconds: float

    def text(self) -> str:
        """One line."""
        return f"served at {self.url} for {self.seconds:.0f} s"


class ReloadResult(Result, frozen=True):
    """What has changed."""

    changed: list[str]

    def text(self) -> str:
        """One line."""
        return f"changed: {', '.join(self.changed)}" if self.changed else "nothing has changed"


class StatusResult(Result, frozen=True):
    """A gateway that runs."""

    url: str
    pid: int
    workers: list[int]
    """Their process ids."""
    restarts: int
    """How often a worker died and was started again."""


def run(job: GatewayJob, emit: Callable[[Event], None]) -> GatewayResult:
    """Serve until a signal, or until another gateway has taken over."""
    if find_spec("uvicorn") is None or find_spec("uvloop") is None:
        raise MachineError("the gateway needs `uvicorn`", hint="pip install 'dialoop[gateway]'")
    return asyncio.run(Parent(job, emit).run())


def reload(job: ReloadJob, emit: Callable[[Event], None]) -> ReloadResult:
    """Give the gateway on a port a new configuration."""
    del emit
    answer, _ = control.ask(job.port, {"do": "reload", "job": _plain(job)})
    return ReloadResult(changed=answer["changed"])


def status(job: StatusJob, emit: Callable[[Event], None]) -> StatusResult:
    """Ask the gateway on a port."""
    del emit
    answer, _ = control.ask(job.port, {"do": "status"})
    return StatusResult(**answer)


@dataclass(slots=True)
class _Child:
    """A worker process, and the line to it."""

    index: int
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Parent:
    """The process that workers are children of; it answers no requests.

    Args:
        job: the configuration.
        emit: receives notes.
    """

    def __init__(self, job: GatewayJob, emit: Callable[[Event], None]) -> None:
        self._job, self._emit = job, emit
        self._children: dict[int, _Child] = {}
        self._stopping = asyncio.Event()
        self._hard = asyncio.Event()
        self._changing = asyncio.Lock()
        """Held while a worker starts or all take over a configuration, so that none misses it."""
        self._restarts = 0
        self._url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="dialoop-gateway-"))

    async def run(self) -> GatewayResult:
        """Serve until the end."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        listening, has_old = self._listen()
        port = listening.getsockname()[1]
        self._job = self._job.model_copy(update={"port": port})
        scheme = "https" if self._job.tls_certificate else "http"
        host = "127.0.0.1" if self._job.host in ("0.0.0.0", "::") else self._job.host  # noqa: S104
        self._url = f"{scheme}://{host}:{port}/v1"
        desk = control.Desk(port, listening, self._obey)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_stop)
        try:
            with listening:
                await self._make_first_key()
                await self._start(listening)
                if has_old:  # before the desk opens, or the order would come to ourselves
                    with suppress(UserError, UpstreamError):  # it may have ended by itself
                        await asyncio.to_thread(control.ask, port, {"do": "drain"})
                desk.open()
                self._emit(Stage(f"serving at {self._url}"))
                self._emit(Note(f"{self._job.workers} workers; Ctrl-C lets open requests end"))
                await self._stopping.wait()
                self._emit(Note("draining: open requests may end; once more to stop now"))
        finally:
            await desk.close()
            await self._stop()
            shutil.rmtree(self._folder, ignore_errors=True)
        return GatewayResult(url=self._url, seconds=round(time.monotonic() - began, 1))

    def _listen(self) -> tuple[socket.socket, bool]:
        """The socket: a new one, or that of the gateway that is replaced."""
        job = self._job
        if not job.replace:
            try:
                return bind(job.host, job.port), False
            except UserError as error:
                if control.path(job.port).exists():
                    error.hint = "`--replace` takes over from the gateway that runs there"
                raise
        _, taken = control.ask(job.port, {"do": "take"})
        if taken is None:
            raise UpstreamError("the running gateway gave no socket", hint="stop it first")
        return taken, True

    async def _make_first_key(self) -> None:
        """A gateway whose database has no key makes one, and tells it once."""
        if not self._job.require_keys:
            return
        from dialoop.gateway.database import Database
        from dialoop.gateway.store.keys import Keys

        database = await Database.open(self._job.database, self._job.database_s)
        try:
            made = await Keys(database).create_first()
        finally:
            await database.close()
        if made:
            self._emit(Note(f"the first key, which may do everything and is shown once: {made[1]}"))

    async def _start(self, listening: socket.socket) -> None:
        try:
            for index in range(self._job.workers):
                await self._spawn(index, listening)
        except BaseException:
            self._stopping.set()
            raise

    async def _spawn(self, index: int, listening: socket.socket) -> None:
        async with self._changing:
            if not self._stopping.is_set():
                await self._spawn_now(index, listening)

    async def _spawn_now(self, index: int, listening: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        # by port, so that a successor goes on counting where its predecessor stopped
        shared = control.path(listening.getsockname()[1]).with_suffix(".shared")
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "dialoop.gateway.worker",
                str(index), str(listening.fileno()), str(theirs.fileno()), str(shared),
                pass_fds=(listening.fileno(), theirs.fileno()),
                env=env.variables(PROMETHEUS_MULTIPROC_DIR=str(self._folder)),
                start_new_session=True,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=2**24)
        child = _Child(index, process, reader, writer)
        self._send(child, self._job)
        answer = await self._answer_of(child)
        if "failed" in answer:
            writer.close()
            await process.wait()
            kinds = {2: UserError, 3: MachineError}
            raise kinds.get(answer.get("code", 4), UpstreamError)(
                answer["failed"], hint=answer.get("hint")
            )
        self._children[index] = child
        if self._stopping.is_set():
            process.terminate()
        task = asyncio.create_task(self._keep(child, listening))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, child: _Child, listening: socket.socket) -> None:
        """Start another worker when one dies; sooner the longer it lived."""
        began = time.monotonic()
        code = await child.process.wait()
        child.writer.close()
        self._forget_numbers(child.process.pid)
        if self._stopping.is_set():
            return
        self._emit(Note(f"worker {child.index} ended with {code} and is started again", "warning"))
        self._restarts += 1
        while not self._stopping.is_set():
            if time.monotonic() - began < 5:
                await asyncio.sleep(1)
            began = time.monotonic()
            try:
                await self._spawn(child.index, listening)
            except DialoopError as error:
                self._emit(Note(f"worker {child.index}: {error}", "warning"))
            else:
                return

    def _forget_numbers(self, pid: int) -> None:
        """A dead worker's gauges count no more; its counters do."""
        for file in self._folder.glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)

    def _send(self, child: _Child, job: GatewayJob) -> None:
        child.writer.write(json.dumps(_plain(job)).encode() + b"\n")

    async def _answer_of(self, child: _Child) -> Json:
        try:
            async with asyncio.timeout(_START_S):
                line = await child.reader.readline()
        except ConnectionError:
            line = b""
        except TimeoutError:
            child.process.kill()
            return {"failed": f"worker {child.index} was not ready within {_START_S:.0f} s"}
        if not line:
            return {"failed": f"worker {child.index} ended before it was ready; see its log"}
        return json.loads(line)

    async def _obey(self, order: Json) -> Json:
        """What an order of the control line does."""
        match order.get("do"):
            case "status":
                pids = [child.process.pid for child in self._children.values()]
                return {
                    "url": self._url,
                    "pid": os.getpid(),
                    "workers": pids,
                    "restarts": self._restarts,
                }
            case "take":
                return {"taken": True}
            case "drain":
                self._emit(Note("another gateway has taken over"))
                self._stopping.set()
                return {"draining": True}
            case "reload":
                return await self._reload(order["job"])
            case other:
                return {"failed": f"unknown order `{other}`"}

    async def _reload(self, raw: Json) -> Json:
        old = self._job
        new = type(old).model_validate({name: raw[name] for name in raw if name != "replace"})
        before, after = _plain(old), _plain(new)
        changed = sorted(n for n in after if n != "replace" and before[n] != after[n])
        if fixed := [name for name in changed if name in _FIXED]:
            return {
                "failed": f"{fixed[0]}: a running gateway does not change it",
                "hint": "start a new one with `--replace`, which takes over without a gap",
            }
        async with self._changing:
            children = list(self._children.values())
            for number, child in enumerate(children):
                answer = await self._give(child, new)
                if "failed" in answer:
                    for other in children[:number]:
                        await self._give(other, old)
                    return answer
            self._job = new
        return {"changed": changed}

    async def _give(self, child: _Child, job: GatewayJob) -> Json:
        """Have a worker take over a configuration; one that has died gets it when it is back."""
        self._send(child, job)
        answer = await self._answer_of(child)
        return {} if child.reader.at_eof() else answer

    def _ask_to_stop(self) -> None:
        (self._hard if self._stopping.is_set() else self._stopping).set()

    async def _stop(self) -> None:
        self._stopping.set()
        processes = [child.process for child in self._children.values()]
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
        waiting = asyncio.gather(*(process.wait() for process in processes))
        hard = asyncio.create_task(self._hard.wait())
        await asyncio.wait({waiting, hard}, return_when=asyncio.FIRST_COMPLETED)
        for process in processes:
            if process.returncode is None:
                process.kill()
        await waiting
        hard.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _plain(job: GatewayJob) -> Json:
    """A job as JSON, its secrets in clear: it only goes to this user's own processes."""
    plain: Json = job.model_dump(mode="json")
    for entry, engine in zip(plain["engines"], job.engines, strict=True):
        entry["api_key"] = engine.api_key.get_secret_value() if engine.api_key else None
    return plain
