"""A fake OpenAI engine: fast, countable, and broken on request.

Usage: python benchmarks/gateway/engine.py [--port N] [--name NAME]

It answers every chat with the same words, whole or as a stream (a role chunk, the words, a chunk
with the finish_reason, usage if asked for, [DONE]). `GET /control` tells what it has seen, `POST
/control` changes how it behaves (`Behaviour`). It imports nothing of dialoop, so that peers can be
measured on it as well. `running` starts one in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import httptools
import orjson

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

MODEL = "fake-model"
ANSWER_TOKENS = 50
"""Tokens of a streamed answer whose request names no limit; with role and finish: 52 chunks."""
JSON_TOKENS = 12
"""Tokens of a whole answer whose request names no limit; its body is about 350 bytes."""

FaultKind = Literal[
    "reset",  # RST before the headers
    "reset_after",  # RST after `after` chunks
    "close_after",  # FIN after `after` chunks, in the middle of the HTTP body
    "cut_line",  # FIN inside an SSE line
    "no_done",  # a clean end of the HTTP body without finish_reason and [DONE]
    "freeze",  # accepts the request and says nothing
    "freeze_after",  # falls silent after `after` chunks
    "freeze_pinging",  # the same, with SSE comments each 100 ms
    "error_event",  # an error event in the stream after `after` chunks
    "status",  # answers with `status`
]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a request to an inference route."""

    kind: FaultKind
    after: int = 5
    """Chunks that are sent before; the role chunk counts."""
    status: int = 500
    times: int | None = None
    """How many requests it meets; None is all of them."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the engine answers."""

    first_s: float = 0.0
    """Pause before the answer: before the first chunk of a stream, before the headers of others."""
    chunk_s: float = 0.0
    """Pause before each following chunk; 0 sends a whole stream at once."""
    fault: Fault | None = None
    cache_tokens: int = 0
    """Size of the simulated prefix cache; 0 is none."""


def answer(num_tokens: int = ANSWER_TOKENS) -> str:
    """The text of an answer of so many tokens."""
    return "".join(f"w{n} " for n in range(num_tokens))


class PrefixCache:
    """Which beginnings of conversations are in the engine's memory; the least recently used go.

    A message is the unit, as a block of tokens is in a real engine; four characters are a token.

    Args:
        capacity: tokens.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._used = 0

    def visit(self, messages: Iterable[dict[str, Any]], reply: str) -> tuple[int, int]:
        """Take a conversation in, with its answer: tokens of the prompt, and those found."""
        path: list[tuple[int, int]] = []
        key = 0
        for message in messages:
            text = f"{message.get('role')}\n{message.get('content')}"
            key = hash((key, text))
            path.append((key, max(1, len(text) // 4)))
        total = sum(size for _, size in path)
        found = itertools.takewhile(lambda step: step[0] in self._sizes, path)
        hit = sum(size for _, size in found)
        reply_text = f"assistant\n{reply}"
        path.append((hash((key, reply_text)), max(1, len(reply_text) // 4)))
        self._keep(path)
        return total, hit

    def _keep(self, path: list[tuple[int, int]]) -> None:
        # Beginnings last, so that they are the youngest and go after what builds on them.
        for key, size in reversed(path):
            if key not in self._sizes:
                self._sizes[key] = size
                self._used += size
            self._sizes.move_to_end(key)
        while self._used > self._capacity:
            self._used -= self._sizes.popitem(last=False)[1]


class Engine:
    """What all connections share: behaviour, counts, the cache."""

    def __init__(self, name: str, behaviour: Behaviour) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.aborts: deque[dict[str, Any]] = deque(maxlen=20_000)
        self.num_open = 0
        self.num_connections = 0
        self.numbers = itertools.count()
        self._frames: dict[int, list[bytes]] = {}
        self.become(behaviour)

    def become(self, behaviour: Behaviour) -> None:
        """Behave so from the next request on; counts and aborts begin anew, the cache is empty."""
        self.behaviour = behaviour
        self._fault_left = behaviour.fault.times if behaviour.fault else 0
        self.counts.clear()
        self.aborts.clear()
        size = behaviour.cache_tokens
        self.cache = PrefixCache(size) if size else None

    def take_fault(self) -> Fault | None:
        """The fault that this request meets."""
        if self._fault_left is None:
            return self.behaviour.fault
        if self._fault_left < 1:
            return None
        self._fault_left -= 1
        return self.behaviour.fault

    def report(self) -> dict[str, Any]:
        """What has been seen since the last `become`."""
        return {
            "name": self.name,
            "pid": os.getpid(),
            "open": self.num_open,
            "connections": self.num_connections,
            "counts": dict(self.counts),
            "aborts": list(self.aborts),
        }

    def frames(self, num_tokens: int) -> list[bytes]:
        """Chunks of a streamed answer, without usage and [DONE]; made once a length."""
        if num_tokens not in self._frames:
            deltas: list[tuple[dict[str, str], str | None]] = [
                ({"role": "assistant", "content": ""}, None),
                *(({"content": f"w{n} "}, None) for n in range(num_tokens)),
                ({}, "stop"),
            ]
            self._frames[num_tokens] = [_frame([_choice(*delta)]) for delta in deltas]
        return self._frames[num_tokens]


def _choice(delta: dict[str, str], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _frame(choices: list[dict[str, Any]], **more: object) -> bytes:
    chunk = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1_700_000_000}
    return _event(orjson.dumps(chunk | {"model": MODEL, "choices": choices} | more))


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


_DONE = _event(b"[DONE]")


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_INFERENCE = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests"}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """One connection; requests follow one another on it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._phase = ""
        """Where the answer under way is; empty between requests."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connects."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit
        self._engine.num_connections += 1

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone; an answer under way counts as aborted."""
        del exc
        self._engine.num_connections -= 1
        if self._phase:
            abort = {"phase": self._phase, "at": time.monotonic()}
            self._engine.aborts.append(abort)
            self._engine.counts["aborted"] += 1
            self._end()
        if self._task:
            self._task.cancel()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._body.clear()

    def on_url(self, url: bytes) -> None:
        """Its target, perhaps in pieces."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """It is all here."""
        body = b"".join(self._body)
        path = self._url.partition(b"?")[0].decode()
        if path in _INFERENCE:
            self._infer(path, body)
        elif path == "/control":
            self._control(body)
        elif path == "/v1/models":
            card = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}
            card |= {"max_model_len": 32768, "root": MODEL, "parent": None}
            self._answer(200, {"object": "list", "data": [card]})
        elif path in {"/health", "/live", "/ready"}:
            self._answer(200, {"status": "ok"})
        elif path == "/tokenize":
            count = max(1, len(body) // 4)
            tokens = {"tokens": list(range(count)), "count": count, "max_model_len": 32768}
            self._answer(200, tokens)
        else:
            self._engine.counts[f"no route {path}"] += 1
            self._answer(404, {"error": {"message": f"no route {path}"}})

    # Answers.

    def _answer(self, status: int, document: object) -> None:
        body = orjson.dumps(document)
        reason = _REASONS.get(status, b"Error")
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % (status, reason, len(body)) + body)

    def _control(self, body: bytes) -> None:
        if body:
            wanted = orjson.loads(body)
            fault = wanted.pop("fault", None)
            self._engine.become(Behaviour(**wanted, fault=Fault(**fault) if fault else None))
        self._answer(200, self._engine.report())

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self._engine.num_open += 1

    def _end(self) -> None:
        self._phase = ""
        self._engine.num_open -= 1

    def _infer(self, path: str, body: bytes) -> None:
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError:
            self._answer(400, {"error": {"message": "not JSON", "type": "invalid_request_error"}})
            return
        engine = self._engine
        engine.counts["requests"] += 1
        engine.counts[path] += 1
        fault = engine.take_fault()
        streams = bool(request.get("stream"))
        if fault or engine.behaviour.first_s or (streams and engine.behaviour.chunk_s):
            self._begin("before_first" if streams else "json")
            work = self._slowly(path, request, fault)
            self._task = asyncio.get_running_loop().create_task(work)
        elif streams:
            frames = [*self._frames(request), _DONE]
            self._transport.writelines([_STREAM_HEAD, *map(_http_chunk, frames), b"0\r\n\r\n"])
        else:
            self._answer(200, self._document(path, request))

    async def _slowly(self, path: str, request: dict[str, Any], fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if fault and kind == "reset":
            self._reset()
            return
        if kind == "freeze" or (kind and "freeze" in kind and not request.get("stream")):
            await asyncio.sleep(3600)
        if fault and kind == "status":
            error = {"message": "the engine says no", "type": "server_error", "param": None}
            self._end()
            self._answer(fault.status, {"error": error | {"code": None}})
            return
        if request.get("stream"):
            await self._stream(request, fault)
            return
        await asyncio.sleep(self._engine.behaviour.first_s)
        if fault:  # the faults of streams, on a whole answer: it is cut
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n{")
            self._hang_up()
            return
        self._end()
        self._answer(200, self._document(path, request))

    async def _stream(self, request: dict[str, Any], fault: Fault | None) -> None:
        behaviour = self._engine.behaviour
        frames = self._frames(request)
        self._transport.write(_STREAM_HEAD)
        await asyncio.sleep(behaviour.first_s)
        for number, frame in enumerate(frames):
            if fault and number == fault.after:
                await self._break(fault, frame)
                return
            if number and behaviour.chunk_s:
                await asyncio.sleep(behaviour.chunk_s)
            self._transport.write(_http_chunk(frame))
            self._phase = "mid_stream"
        self._end()
        self._transport.writelines([_http_chunk(_DONE), b"0\r\n\r\n"])

    async def _break(self, fault: Fault, frame: bytes) -> None:
        match fault.kind:
            case "reset_after":
                await asyncio.sleep(0.02)  # a reset overtakes data that was not read yet
                self._reset()
            case "close_after":
                self._hang_up()
            case "cut_line":
                self._transport.write(_http_chunk(frame[: len(frame) // 2]))
                self._hang_up()
            case "no_done":
                self._end()
                self._transport.write(b"0\r\n\r\n")
            case "error_event":
                error = {"message": "out of memory", "type": "server_error", "code": 500}
                self._end()
                event = _event(orjson.dumps({"error": error}))
                self._transport.writelines([_http_chunk(event), _http_chunk(_DONE), b"0\r\n\r\n"])
            case "freeze_pinging":
                while True:
                    await asyncio.sleep(0.1)
                    self._transport.write(_http_chunk(b": ping\n\n"))
            case _:
                await asyncio.sleep(3600)

    def _hang_up(self) -> None:
        self._end()
        self._transport.close()

    def _reset(self) -> None:
        self._end()
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # Contents.

    def _frames(self, request: dict[str, Any]) -> list[bytes]:
        num_tokens = _limit(request, ANSWER_TOKENS)
        usage = self._usage(request, num_tokens)
        frames = self._engine.frames(num_tokens)
        wants_usage = (request.get("stream_options") or {}).get("include_usage")
        return [*frames, _frame([], usage=usage)] if wants_usage else frames

    def _usage(self, request: dict[str, Any], num_tokens: int) -> dict[str, Any]:
        prompt, cached = 20, 0
        if self._engine.cache and "messages" in request:
            prompt, cached = self._engine.cache.visit(request["messages"], answer(num_tokens))
            self._engine.counts["prompt_tokens"] += prompt
            self._engine.counts["cached_tokens"] += cached
        usage = {"prompt_tokens": prompt, "completion_tokens": num_tokens}
        usage["total_tokens"] = prompt + num_tokens
        return usage | {"prompt_tokens_details": {"cached_tokens": cached}}

    def _document(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/embeddings":
            return self._vectors(request)
        num_tokens = _limit(request, JSON_TOKENS)
        message = {"role": "assistant", "content": answer(num_tokens)}
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "stop"}
        if path == "/v1/completions":
            choice, kind = choice | {"text": answer(num_tokens)}, "text_completion"
        else:
            choice, kind = choice | {"message": message}, "chat.completion"
        number = next(self._engine.numbers)
        document = {"id": f"chatcmpl-{self._engine.name}-{number}", "object": kind}
        document |= {"created": 1_700_000_000, "model": MODEL, "choices": [choice]}
        return document | {"usage": self._usage(request, num_tokens)}

    def _vectors(self, request: dict[str, Any]) -> dict[str, Any]:
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        values = [0.5] * 8
        packed = base64.b64encode(struct.pack("<8f", *values)).decode()
        vector = packed if request.get("encoding_format") == "base64" else values
        rows = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(texts))]
        usage = {"prompt_tokens": 4 * len(texts), "total_tokens": 4 * len(texts)}
        return {"object": "list", "model": MODEL, "data": rows, "usage": usage}


def _limit(request: dict[str, Any], default: int) -> int:
    asked = request.get("max_completion_tokens") or request.get("max_tokens") or default
    return min(asked, 4096)


async def serve(name: str, port: int, behaviour: Behaviour) -> None:
    """Serve until cancelled; the port goes to stdout as soon as it listens."""
    engine = Engine(name, behaviour)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine in a process of its own."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its address, without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    def behave(self, fault: Fault | FaultKind | None = None, **behaviour: float) -> None:
        """Change how it behaves; what is not said has its default. Counts begin anew.

        Args:
            fault: what goes wrong, for all requests to come.
            behaviour: fields of `Behaviour`.
        """
        broken = Fault(fault) if isinstance(fault, str) else fault
        wanted = replace(Behaviour(), fault=broken, **behaviour)
        self._control(orjson.dumps(asdict(wanted)))

    def report(self) -> dict[str, Any]:
        """`Engine.report`."""
        return self._control(b"")

    def num_requests(self) -> int:
        """Requests since the last `behave`."""
        return self.report()["counts"].get("requests", 0)

    def signal(self, number: signal.Signals) -> None:
        """SIGKILL, SIGSTOP, SIGCONT; a killed one is waited for."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def _control(self, body: bytes) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("POST" if body else "GET", "/control", body)
            return orjson.loads(connection.getresponse().read())


def start(name: str = "engine", *, port: int = 0, cpu: int | None = None) -> RunningEngine:
    """Start an engine in a process of its own, which the caller ends; it listens on return.

    Args:
        name: part of the ids of its answers.
        port: 0 takes a free one.
        cpu: the core that it is bound to.
    """
    command = [sys.executable, str(Path(__file__)), "--name", name, "--port", str(port)]
    with on_cpu(cpu):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603  this file
    with cast("IO[bytes]", process.stdout) as told:
        return RunningEngine(name, int(told.readline()), process)


@contextlib.contextmanager
def running(name: str = "engine", *, cpu: int | None = None) -> Generator[RunningEngine]:
    """An engine in a process of its own, which ends with the block; see `start`."""
    engine = start(name, cpu=cpu)
    try:
        yield engine
    finally:
        engine.signal(signal.SIGKILL)


@contextlib.contextmanager
def on_cpu(cpu: int | None) -> Iterator[None]:
    """Bind this thread to a core for a while: processes that it starts inherit the core."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    """Serve on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="engine")
    options = parser.parse_args()
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(options.name, options.port, Behaviour()))


if __name__ == "__main__":
    main()
