"""One worker process: it answers on a socket that it shares with the others, until it is drained.

Its parent hands it the listening socket and a line to itself; over the line it says when it is
ready and is told of new configurations. On SIGTERM it accepts no more connections, ends what is
under way, asks the clients of kept connections to come again (`connection: close`), and is gone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dialoop.core.errors import DialoopError
from dialoop.gateway.app import App
from dialoop.gateway.parts import open_parts
from dialoop.gateway.spec import GatewayJob

if TYPE_CHECKING:
    from collections.abc import Generator

log = logging.getLogger(__name__)

_LINGER_S = 5.0
"""How long an idle connection may still bring a request when the worker is drained."""
_LAG_S = 0.1
_KEEP_ALIVE_S = 75
_HEAD_S = 30.0
_MAX_HEAD_BYTES = 64 * 2**10
_LEARN_S = 2.0
"""How long is waited for engines to tell what they serve, before anybody is told that it is not."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with a limit on how long clients take, and on the heads of their requests."""

    _num_head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _taking_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """What asyncio calls."""
        super().connection_lost(exc)
        self._end_head()
        self._end_taking()

    def pause_writing(self) -> None:
        """What asyncio calls."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """What asyncio calls."""
        super().resume_writing()
        self._end_taking()

    def timeout_keep_alive_handler(self) -> None:
        """What its timer calls; a client that has not even read its answer gets no time for it."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        """What the parser calls."""
        super().on_message_begin()
        self._num_head_bytes = 0
        self._head_timer = self.loop.call_later(_HEAD_S, self.transport.abort)

    def on_url(self, url: bytes) -> None:
        """What the parser calls."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """What the parser calls."""
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """What the parser calls."""
        self._end_head()
        super().on_headers_complete()

    def _count_head(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > _MAX_HEAD_BYTES:
            raise ValueError("the head of the request is too large")

    def _expect_taking(self) -> None:
        """Cut the client off when it takes nothing for too long of what waits for it."""
        left = self.transport.get_write_buffer_size()
        app = cast("App", self.config.app)
        client_s = app.parts.job.patience.client_s
        self._taking_timer = self.loop.call_later(client_s, self._look_at_taking, left)

    def _look_at_taking(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_taking()
        else:
            self.transport.abort()

    def _end_taking(self) -> None:
        if self._taking_timer:
            self._taking_timer.cancel()
            self._taking_timer = None

    def _end_head(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


class Server(uvicorn.Server):
    """uvicorn, drained our way."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the worker's."""
        yield

    def stop_accepting(self) -> None:
        """Leave new connections to others."""
        for server in self.servers:
            server.close()

    async def empty(self, limit_s: float) -> None:
        """Wait till no connection is left: idle ones are closed after a while, all at the limit."""
        began = time.monotonic()
        connections: set[Any] = self.server_state.connections
        while connections and time.monotonic() - began < limit_s:
            if time.monotonic() - began > _LINGER_S:
                for one in list(connections):
                    if one.cycle is None or one.cycle.response_complete:
                        one.timeout_keep_alive_handler()
            await asyncio.sleep(0.05)
        for one in list(connections):
            one.transport.abort()


class Worker:
    """Answers on a socket.

    Args:
        job: the configuration.
        listening: bound and listening.
        folder: what the workers of one gateway share is there; None where there is one.
    """

    def __init__(
        self, job: GatewayJob, listening: socket.socket, folder: Path | None = None
    ) -> None:
        self._job, self._listening, self._folder = job, listening, folder
        self.app: App
        self.server: Server
        self._serving: asyncio.Task[None] | None = None
        self._lag: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open everything and answer.

        Raises:
            DialoopError: something of the configuration cannot be had.
        """
        parts = await open_parts(self._job, self._folder)
        parts.pool.start()
        await parts.pool.learn(_LEARN_S)
        self.app = App(parts)
        proxies = list(self._job.trusted_proxies)
        config = uvicorn.Config(
            self.app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
            ssl_certfile=self._job.tls_certificate,
            ssl_keyfile=self._job.tls_key,
        )
        self.server = Server(config)
        self._serving = asyncio.create_task(self.server.serve(sockets=[self._listening]))
        while not self.server.started:
            if self._serving.done():
                await self._serving
                raise RuntimeError("the server ended before it had started")
            await asyncio.sleep(0.01)
        self._lag = asyncio.create_task(self._measure_lag())

    async def reload(self, job: GatewayJob) -> None:
        """Take over a configuration; requests under way go on under their own.

        Raises:
            DialoopError: it cannot be opened; the old one goes on.
        """
        old = self.app.parts
        new = await open_parts(job, self._folder, old)
        new.pool.start(old.pool)
        await new.pool.learn(_LEARN_S)
        self.app.parts, self._job = new, job
        await old.pool.stop(new.pool)

    async def drain(self) -> None:
        """End what is under way, and stop."""
        self.app.is_draining = True
        self.server.stop_accepting()
        await self.server.empty(self._job.patience.request_s)
        await self.stop()

    async def stop(self) -> None:
        """Stop at once."""
        if self._lag:
            self._lag.cancel()
        self.server.should_exit = True
        if self._serving:
            with suppress(asyncio.CancelledError):
                await self._serving
        await self.server.empty(0)
        await self.app.parts.close()

    async def _measure_lag(self) -> None:
        while True:
            expected = time.monotonic() + _LAG_S
            await asyncio.sleep(_LAG_S)
            self.app.parts.metrics.loop_lag.observe(max(0.0, time.monotonic() - expected))


def main() -> None:
    """Serve as a process: `worker INDEX LISTENING_FD PARENT_FD FOLDER`; the line brings the job."""
    index, listening_fd, parent_fd = (int(word) for word in sys.argv[1:4])
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(levelname)s worker {index}: %(message)s"
    )
    listening = socket.socket(fileno=listening_fd)
    parent = socket.socket(fileno=parent_fd)
    uvloop.run(_main(listening, parent, Path(sys.argv[4])))


async def _main(listening: socket.socket, parent: socket.socket, folder: Path) -> None:
    reader, writer = await asyncio.open_connection(sock=parent, limit=2**24)

    def tell(**message: Any) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the parent decides
    job = GatewayJob.model_validate_json(await reader.readline())
    worker = Worker(job, listening, folder)
    try:
        await worker.start()
    except DialoopError as error:
        tell(failed=Exception.__str__(error), hint=error.hint, code=error.exit_code)
        await writer.drain()
        return
    tell(ready=True)

    # what has been made so far stays: collections need not look at it, nor come for every request
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)

    async def listen() -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    await worker.reload(GatewayJob.model_validate_json(line))
                    tell(reloaded=True)
                except DialoopError as error:
                    tell(failed=Exception.__str__(error), hint=error.hint, code=error.exit_code)
        stopping.set()  # the parent has died

    listening_to = asyncio.create_task(listen())
    await stopping.wait()
    listening_to.cancel()
    await worker.drain()


if __name__ == "__main__":
    main()
