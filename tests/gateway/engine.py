"""Fake engines in the test's own loop: the benchmarks' engine, and servers of scripted bytes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import orjson
from benchmarks.gateway.engine import Behaviour, Connection, Engine, Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

Json = dict[str, Any]
Script = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]"


class FakeEngine(Engine):
    """An engine that also remembers what it was asked."""

    def __init__(self, name: str = "engine") -> None:
        self.asked: list[Json] = []
        self.says: Callable[[Json], bytes | None] | None = None
        """The raw response to a request, where it gives one."""
        super().__init__(name, Behaviour())
        self.port = 0

    @property
    def url(self) -> str:
        """Its address as the gateway's configuration wants it."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def num_asked(self) -> int:
        """Requests that were no checks."""
        return len(self.asked)

    def behave(self, fault: FaultKind | Fault | None = None, **behaviour: Any) -> None:
        """Answer so from now on; the counts begin anew."""
        broken = Fault(fault) if isinstance(fault, str) else fault
        self.asked.clear()
        self.become(Behaviour(fault=broken, **behaviour))


class FakeConnection(Connection):
    """One connection of the test's engine."""

    def _infer(self, path: str, body: bytes) -> None:
        engine = self._engine
        assert isinstance(engine, FakeEngine)
        request = orjson.loads(body)
        if request.get("messages") == [{"role": "user", "content": "."}]:  # the gateway's check
            self._answer(200, self._document(path, request))
            return
        engine.asked.append(request)
        raw = engine.says(request) if engine.says else None
        if raw is None:
            super()._infer(path, body)
        else:
            self._transport.write(raw)


@asynccontextmanager
async def running(name: str = "engine", port: int = 0) -> AsyncGenerator[FakeEngine]:
    """An engine that listens."""
    engine = FakeEngine(name)
    loop = asyncio.get_running_loop()
    connections: list[FakeConnection] = []

    def connect() -> FakeConnection:
        connections.append(FakeConnection(engine))
        return connections[-1]

    server = await loop.create_server(connect, "127.0.0.1", port)
    engine.port = server.sockets[0].getsockname()[1]
    try:
        yield engine
    finally:
        server.close()
        for one in connections:
            one._transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[str]:
    """A server that does with each connection what a function does; gives its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """Read a request with its body; the whole of it."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    return head + await reader.readexactly(length)


def response(body: bytes, status: int = 200, **headers: str) -> bytes:
    """A response of known length."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def refusal(status: int, message: str, **more: Any) -> bytes:
    """An error as OpenAI's API says it; `headers` go into the head."""
    headers = more.pop("headers", {})
    error = {"message": message, "type": "x", "param": None, "code": None} | more
    return response(orjson.dumps({"error": error}), status, **headers)
