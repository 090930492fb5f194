"""`dialoop serve`: bind, load, answer; the first SIGTERM drains, the second stops."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Note, Stage
from dialoop.core.schema import Result
from dialoop.serve.app import App, AppSettings
from dialoop.serve.model import open_model

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from dialoop.core.events import Event
    from dialoop.engines import Engine
    from dialoop.serve.spec import ServeJob

log = logging.getLogger(__name__)


class ServeResult(Result, frozen=True):
    """What a server did."""

    url: str
    model: str
    engine: str
    generated_tokens: int

    def text(self) -> str:
        """One line."""
        return f"served {self.model} at {self.url}: {self.generated_tokens} tokens"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers."""

    url: str
    """With `/v1`, as OpenAI's clients want it."""
    model: str
    engine: Engine
    app: App
    has_ended: asyncio.Event
    """Set when the server has ended for whatever reason."""


def run(job: ServeJob, emit: Callable[[Event], None]) -> ServeResult:
    """Serve until a signal or the engine's end."""
    return asyncio.run(_run(job, emit))


async def _run(job: ServeJob, emit: Callable[[Event], None]) -> ServeResult:
    async with running(job, emit) as server:
        emit(Stage(f"serving at {server.url}"))
        emit(Note(f"model {server.model}; stop with Ctrl-C, which lets open requests end"))
        with _signals() as wanted:
            await _until_ended(server, wanted, emit)
        if server.engine.failure and not wanted.is_draining:
            raise server.engine.failure
        count = server.app.metrics.generated_tokens
        total = int(next(iter(count.collect())).samples[0].value)
        engine = server.engine.info.engine
        return ServeResult(
            url=server.url, model=server.model, engine=engine, generated_tokens=total
        )


async def _until_ended(
    server: RunningServer, wanted: _Wanted, emit: Callable[[Event], None]
) -> None:
    first = asyncio.create_task(wanted.first.wait())
    ended = asyncio.create_task(server.has_ended.wait())
    await asyncio.wait({first, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if not first.done():
        first.cancel()
        return
    emit(Note(f"draining: {server.app.num_open} open requests may end; once more to stop now"))
    drained = asyncio.create_task(server.app.drain())
    second = asyncio.create_task(wanted.second.wait())
    await asyncio.wait({drained, second}, return_when=asyncio.FIRST_COMPLETED)
    if second.done():
        await server.engine.stop()  # open requests end with an error that says so
    drained.cancel()
    second.cancel()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What signals asked for."""

    first: asyncio.Event
    second: asyncio.Event

    @property
    def is_draining(self) -> bool:
        return self.first.is_set()


@contextmanager
def _signals() -> Generator[_Wanted, None, None]:
    loop = asyncio.get_running_loop()
    wanted = _Wanted(asyncio.Event(), asyncio.Event())

    def ask() -> None:
        (wanted.second if wanted.first.is_set() else wanted.first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    try:
        yield wanted
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def running(
    job: ServeJob, emit: Callable[[Event], None]
) -> AsyncGenerator[RunningServer, None]:
    """A server for the length of the block; installs no signal handlers.

    Raises:
        UserError: the port is taken, or the model cannot be run as asked.
        MachineError: a package is missing.
    """
    if find_spec("uvicorn") is None:
        raise MachineError(
            "the server needs the package `uvicorn`", hint="pip install 'dialoop[serve]'"
        )
    # Before the model, so that a taken port costs no wait.
    with bind(job.host, job.port) as listening:
        model = await open_model(job.model, job, emit)
        engine = model.engine
        try:
            name = job.served_model_name or model.name
            limit = job.max_concurrent + job.max_waiting
            settings = AppSettings(name, job.api_key, limit, job.may_load_adapters)
            app = App(engine, model.template, settings)
            for adapter, template in model.adapters.items():
                app.add_adapter(adapter, template)
            url = f"http://{_shown(job.host)}:{listening.getsockname()[1]}/v1"
            async with _listening(app, listening, engine) as has_ended:
                yield RunningServer(url, name, engine, app, has_ended)
        finally:
            await engine.stop()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, on exactly this port.

    Raises:
        UserError: the port is taken, or the address is not one of this machine's.
        MachineError: the port may not be used by this user.
    """
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(kind, socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"host: `{host}` is no address ({error})", hint="use 127.0.0.1") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} on {host} is in use by another program",
                hint="stop it, or choose another with `--port`; 0 takes a free one",
            ) from error
        if error.errno == errno.EACCES:
            raise MachineError(
                f"port {port} may not be used by this user", hint="choose one above 1023"
            ) from error
        raise UserError(f"cannot listen on {host}:{port} ({error})", hint="check `host`") from error
    return listening


@asynccontextmanager
async def _listening(
    app: App, listening: socket.socket, engine: Engine
) -> AsyncGenerator[asyncio.Event, None]:
    import uvicorn

    is_up = asyncio.Event()

    class Server(uvicorn.Server):
        """uvicorn without its own signal handlers: ours drain first."""

        @contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            is_up.set()

    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    has_ended = asyncio.Event()
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    serving.add_done_callback(lambda _: has_ended.set())
    watching = asyncio.create_task(_watch(engine, has_ended))
    try:
        await is_up.wait()
        yield has_ended
    finally:
        watching.cancel()
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await serving


async def _watch(engine: Engine, has_ended: asyncio.Event) -> None:
    """A server whose engine has died ends, with the engine's error, so that it can be restarted."""
    await engine.wait_failed()
    has_ended.set()


def _shown(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
