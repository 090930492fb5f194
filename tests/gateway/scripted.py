"""A gateway in the test's own loop before an engine that says what the test writes."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import openai

from dialoop.gateway.spec import GatewayJob
from dialoop.gateway.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

Json = dict[str, Any]
CUT: Any = "cut"
"""In a script: the connection breaks here."""
MODEL = "m"


def chunk(finish: str | None = None, **delta: Any) -> Json:
    """One chunk of a chat's stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL} | {
        "choices": [choice]
    }


def says(text: str, finish: str = "stop") -> list[Any]:
    """A script: a text in pieces of three characters."""
    pieces = [text[n : n + 3] for n in range(0, len(text), 3)]
    return [chunk(content=piece) for piece in pieces] + [chunk(finish)]


USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 2},
}


@dataclass
class Engine:
    """Answers every chat by its script; remembers what it was asked."""

    script: list[Any] = field(default_factory=lambda: says("Hello there"))
    """Chunks of the answer, `CUT`, or a coroutine function to wait for."""
    status: int = 200
    asked: list[Json] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    """Request lines and headers."""
    other: dict[str, Json] = field(default_factory=dict)
    """Answers at other paths."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head.decode("latin-1").lower())
                path = head.split(b" ", 2)[1].decode()
                size = [line for line in head.lower().split(b"\r\n") if b"content-length" in line]
                body = await reader.readexactly(int(size[0].split(b":")[1])) if size else b"{}"
                await self._serve(path, json.loads(body or b"{}"), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def script_of(self, body: Json) -> list[Any]:
        """What is said to a request."""
        return self.script

    async def _serve(self, path: str, body: Json, writer: asyncio.StreamWriter) -> None:
        if path.endswith("/models"):
            await _send(writer, {"data": [{"id": MODEL}]})
            return
        self.asked.append(body)
        for end, found in self.other.items():
            if path.endswith(end):
                await _send(writer, found)
                return
        if self.status != 200:
            await _send(writer, {"error": {"message": "scripted"}}, self.status)
            return
        if not body.get("stream"):
            await _send(writer, await self._whole(body))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"connection: close\r\n\r\n")
        for step in self.script_of(body):
            if step is CUT:
                raise ConnectionError
            if callable(step):
                await step()  # pyright: ignore[reportGeneralTypeIssues]
                continue
            writer.write(b"data: " + json.dumps(step).encode() + b"\n\n")
            await writer.drain()
        if (body.get("stream_options") or {}).get("include_usage"):
            last = chunk() | {"choices": [], "usage": USAGE}
            writer.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        raise ConnectionError

    async def _whole(self, body: Json) -> Json:
        from dialoop.gateway.gathered import Gathered

        gathered = Gathered()
        for step in self.script_of(body):
            if callable(step):
                await step()  # pyright: ignore[reportGeneralTypeIssues]
            elif step is not CUT:
                gathered.add(step)
        return gathered.completion() | {"usage": USAGE}


async def _send(writer: asyncio.StreamWriter, found: Json, status: int = 200) -> None:
    data = json.dumps(found).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(data)) + data)
    await writer.drain()


@dataclass
class Live:
    """A gateway that answers."""

    engine: Engine
    worker: Worker
    url: str
    client: openai.AsyncOpenAI
    http: httpx.AsyncClient

    @property
    def history(self) -> Any:
        """What the worker keeps conversations with."""
        return self.worker.app.parts.stores.history


@asynccontextmanager
async def gateway(folder: Path, **settings: Any) -> AsyncIterator[Live]:
    """A worker before one scripted engine, and clients of it."""
    engine = Engine()
    server = await asyncio.start_server(engine.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    job = GatewayJob(
        **{
            "engines": [f"http://127.0.0.1:{port}/v1"],
            "models": {MODEL: {"versions": [{"model": MODEL}]}},
            "require_keys": False,
            "database": f"sqlite:///{folder}/gateway.db",
            "health": {"probe": "none"},
            "traces": {"access_log": False},
        }
        | settings
    )
    listening = socket.create_server(("127.0.0.1", 0))
    worker = Worker(job, listening)
    await worker.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=20) as http, client:
            yield Live(engine, worker, url, client, http)
    finally:
        await worker.stop()
        listening.close()
        server.close()


def with_gateway(
    folder: Path, work: Callable[[Live], Coroutine[Any, Any, None]], **settings: Any
) -> None:
    """Start a gateway, work with it, stop it."""

    async def whole() -> None:
        async with gateway(folder, **settings) as live:
            await asyncio.wait_for(work(live), 30)

    asyncio.run(whole())
