"""The parent's side of an engine: starts the worker process and shares it among requests.

Worker death (seen as the end of the stream) and a worker that says nothing for `stall_s` while it
has work end every open request with an UpstreamError that says which of the two it was.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import time
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from dialoop.core.env import variables
from dialoop.core.errors import DialoopError, MachineError, UpstreamError, UserError
from dialoop.engines import Delta, EngineInfo, Request, Sampling, unknown_adapter
from dialoop.engines.limits import check_room
from dialoop.engines.wire import encode, read_async
from dialoop.engines.worker import delta, request_frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from dialoop.engines.wire import Frame
    from dialoop.engines.worker import WorkerJob

_KINDS = {kind.__name__: kind for kind in (UserError, MachineError, UpstreamError)}
_GRACE_S = 5.0


class ProcessEngine:
    """An Engine in a worker process.

    Args:
        job: what the worker loads.
        environment: variables for the worker, beside those of this process.
        stall_s: with work to do, a worker that is silent for so long counts as frozen.
        admit: raises where an adapter that comes later cannot be applied.
    """

    def __init__(
        self,
        job: WorkerJob,
        environment: dict[str, str] | None = None,
        stall_s: float = 300.0,
        admit: Callable[[Path], None] | None = None,
    ) -> None:
        self._job = job
        self._adapters = dict(job.adapters)
        self._admit = admit
        self._environment = environment or {}
        self._stall_s = stall_s
        self._keys = itertools.count(1)
        self._open: dict[int, asyncio.Queue[Delta | DialoopError]] = {}
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_at = 0.0
        self._info: EngineInfo | None = None
        self._failure: DialoopError | None = None
        self._has_failed = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        """What has started."""
        if self._info is None:
            raise RuntimeError("the engine has not started")
        return self._info

    @property
    def pid(self) -> int:
        """The worker's process id."""
        if self._process is None:
            raise RuntimeError("the engine has not started")
        return self._process.pid

    @property
    def num_open(self) -> int:
        """Requests being answered or waiting."""
        return len(self._open)

    @property
    def failure(self) -> DialoopError | None:
        """Why nothing more can be asked; None while the engine works."""
        return self._failure

    async def wait_failed(self) -> None:
        """Return when nothing more can be asked."""
        await self._has_failed.wait()

    async def start(self) -> None:
        """Start the worker; returns once it has served one token."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dialoop.engines.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=variables(**self._environment),
                start_new_session=True,  # Ctrl-C is for the parent, which then stops the worker
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(encode(asdict(self._job)))
        try:
            frame = await read_async(reader)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if frame is None or frame["is"] == "failed":
            error = _error(frame) if frame else await self._death()
            await self.stop()
            raise error
        self._info = EngineInfo(**frame["info"])
        self._tasks = [
            asyncio.create_task(self._receive(reader)),
            asyncio.create_task(self._watch()),
        ]

    async def health(self) -> None:
        """Serve one token.

        Raises:
            UpstreamError: the worker is dead, frozen or stopped.
        """
        async for _ in self.generate(Request((1,), Sampling(max_tokens=1, temperature=0.0))):
            pass

    @property
    def adapters(self) -> dict[str, str]:
        """Folders of the adapters that requests may name."""
        return dict(self._adapters)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter ready, which requests then name.

        Raises:
            UserError: the name is in use, or the adapter does not fit this model.
            UpstreamError: the engine is dead or stopped.
        """
        if name in self._adapters:
            raise UserError(
                f"an adapter `{name}` is loaded already", hint="unload it first, or choose a name"
            )
        if self._admit is not None:
            await asyncio.to_thread(self._admit, folder)
        await self._do({"do": "load", "name": name, "folder": str(folder)})
        self._adapters[name] = str(folder)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; its open requests end with an error.

        Raises:
            UserError: no adapter has this name.
        """
        if name not in self._adapters:
            raise unknown_adapter(name, self._adapters)
        del self._adapters[name]
        await self._do({"do": "unload", "name": name})

    async def _do(self, order: Frame) -> None:
        async for _ in self._ask(order):
            pass

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Answer one request; closing the iterator early aborts the work on it."""
        self._check(request)
        async with aclosing(self._ask(request_frame(request))) as deltas:
            async for item in deltas:
                yield item

    async def _ask(self, frame: Frame) -> AsyncGenerator[Delta, None]:
        """Send a frame and give what comes back, to the last delta."""
        if self._failure is not None:
            raise self._failure
        key = next(self._keys)
        queue: asyncio.Queue[Delta | DialoopError] = asyncio.Queue()
        if not self._open:
            self._heard_at = time.monotonic()  # silence counts from when there is work
        self._open[key] = queue
        self._is_idle.clear()
        is_done = False
        try:
            self._send(frame | {"key": key})
            while not is_done:
                item = await queue.get()
                if isinstance(item, DialoopError):
                    is_done = True
                    raise item
                is_done = item.finish is not None
                yield item
        finally:
            self._close(key, is_done=is_done)

    async def drain(self) -> None:
        """Refuse new requests and wait until the open ones have ended."""
        if self._failure is None:
            self._failure = UpstreamError("the engine is shutting down", hint="try again later")
        await self._is_idle.wait()

    async def stop(self) -> None:
        """End the worker; open requests end with an UpstreamError."""
        self._fail(UpstreamError("the engine was stopped", hint="try again later"))
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._writer:
            self._writer.close()  # the worker ends when its parent's end of the stream closes
            with suppress(ConnectionError):
                await self._writer.wait_closed()
        if self._process:
            await _end(self._process)

    def _check(self, request: Request) -> None:
        if self._failure is not None:
            raise self._failure
        if request.adapter is not None and request.adapter not in self._adapters:
            raise unknown_adapter(request.adapter, self._adapters)
        check_room(request, self.info.max_length)

    def _send(self, frame: Frame) -> None:
        if self._writer:
            self._writer.write(encode(frame))

    def _close(self, key: int, *, is_done: bool) -> None:
        del self._open[key]
        if not is_done and self._failure is None:
            self._send({"do": "abort", "key": key})
        if not self._open:
            self._is_idle.set()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        while (frame := await read_async(reader)) is not None:
            self._heard_at = time.monotonic()
            self._deliver(frame)
        self._fail(await self._death())

    async def _watch(self) -> None:
        """End a worker that says nothing although it has work."""
        while self._failure is None:
            await asyncio.sleep(self._stall_s / 10)
            if self._open and time.monotonic() - self._heard_at > self._stall_s:
                await self._freeze()

    def _deliver(self, frame: Frame) -> None:
        queue = self._open.get(frame.get("key", 0))
        if queue is None:  # a tick, or an answer that nobody waits for any more
            return
        if frame["is"] == "delta":
            queue.put_nowait(delta(frame))
        else:
            queue.put_nowait(_error(frame))

    async def _freeze(self) -> None:
        self._fail(
            UpstreamError(
                f"the engine has said nothing for {self._stall_s:.0f} s and was ended",
                hint="start the server again",
            )
        )
        if self._process:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _death(self) -> DialoopError:
        code = await self._process.wait() if self._process else 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return UpstreamError(
            f"the engine's process has died ({how})", hint="its last words are in the log above"
        )

    def _fail(self, error: DialoopError) -> None:
        self._failure = error
        self._has_failed.set()
        for queue in self._open.values():
            queue.put_nowait(error)


def _error(frame: Frame) -> DialoopError:
    return _KINDS.get(frame["kind"], DialoopError)(frame["message"], hint=frame["hint"])


async def _end(process: asyncio.subprocess.Process) -> None:
    for ask in (None, process.terminate, process.kill):
        if process.returncode is not None:
            return
        if ask:
            with suppress(ProcessLookupError):
                ask()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_S)
