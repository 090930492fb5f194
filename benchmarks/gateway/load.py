"""Load for an OpenAI-compatible server, every answer of which is judged.

Usage: python -m benchmarks.gateway.load URL [--clients N | --rate R] [--seconds S] [--stream]

A closed loop (each client asks again when it has its answer) finds how much a server can do; an
open loop (Poisson arrivals, latency counted from the arrival that was meant) tells how long one
waits. A stream is whole only if all its text, a finish_reason and [DONE] came. Questions differ, so
that no cache answers. The client is a bare protocol: a library's own cost would be measured as the
server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import httptools
import orjson
from benchmarks.gateway.engine import ANSWER_TOKENS, JSON_TOKENS, MODEL, answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NUMBER = b"########"
"""Stands in a request for the number that makes it unlike all others."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what they are."""

    url: str
    """Without `/v1`."""
    key: str = ""
    model: str = MODEL
    stream: bool = False
    path: str = "/v1/chat/completions"
    max_tokens: int | None = None
    more: Mapping[str, object] = field(default_factory=dict[str, object])
    """Further fields of the body."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    @property
    def text(self) -> str:
        """What a whole answer says."""
        return answer(self.max_tokens or (ANSWER_TOKENS if self.stream else JSON_TOKENS))

    def request(self) -> bytes:
        """The request's bytes, `_NUMBER` in its question."""
        content = f"Question {_NUMBER.decode()}: what does the lighthouse keeper do all day?"
        return self.asking([{"role": "user", "content": content}])

    def asking(self, messages: list[dict[str, str]]) -> bytes:
        """The bytes of a request with these messages."""
        body: dict[str, object] = {"model": self.model, "messages": messages}
        if self.stream:
            body["stream"] = True
        if self.max_tokens:
            body["max_tokens"] = self.max_tokens
        return self.head(len(data := orjson.dumps(body | dict(self.more)))) + data

    def head(self, length: int) -> bytes:
        """The head of a request whose body has so many bytes."""
        lines = [f"POST {self.path} HTTP/1.1", f"host: {self.address[0]}:{self.address[1]}"]
        lines += ["content-type: application/json", f"content-length: {length}"]
        lines += [f"authorization: Bearer {self.key}"] if self.key else []
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(slots=True)
class Reply:
    """What came back for one request."""

    status: int = 0
    """0 if no response began."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    ended: bool = False
    """The HTTP message is complete."""
    began: float = math.nan
    """When it was asked for, on `time.perf_counter`."""
    first_s: float = math.nan
    """From the request to the first byte with words of the answer."""
    seconds: float = math.nan
    """From the request to the end."""
    failure: str = ""
    """`refused`, `timeout`; empty otherwise."""

    def events(self) -> list[bytes]:
        """The data of its SSE events, in order, of complete ones only."""
        blocks = self.body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
        return [block[6:] for block in blocks if block.startswith(b"data: ")]

    def kind(self, text: str, stream: bool) -> str:
        """What to think of it.

        Returns:
            `whole`; `error_event` (a stream that says that it failed); `status_N`; or what a client
            could take for an answer or must guess at: `cut` (the connection ended inside),
            `unended` (no finish_reason or no [DONE]), `false_stop` (finished, with words missing),
            `wrong` (other words), `reset` (no response), `refused`, `timeout`.
        """
        if self.failure or not self.status:
            return self.failure or "reset"
        if self.status != 200:
            return f"status_{self.status}" if self.ended else "cut"
        if not stream:
            return self._kind_of_json(text) if self.ended else "cut"
        return self._kind_of_stream(text)

    def _kind_of_json(self, text: str) -> str:
        try:
            said = orjson.loads(self.body)["choices"][0]["message"]["content"]
        except (orjson.JSONDecodeError, KeyError, IndexError):
            return "wrong"
        return "whole" if said == text else "wrong"

    def _kind_of_stream(self, text: str) -> str:
        said: list[str] = []
        finish = None
        events = self.events()
        for event in events:
            if event == b"[DONE]":
                break
            try:
                chunk = orjson.loads(event)
            except orjson.JSONDecodeError:
                return "wrong"
            if "error" in chunk:
                return "error_event"
            for choice in chunk["choices"]:
                said.append(choice["delta"].get("content") or "")
                finish = choice.get("finish_reason") or finish
        if not self.ended:
            return "cut"
        if not finish or events[-1:] != [b"[DONE]"]:
            return "unended"
        whole = "".join(said)
        if whole == text:
            return "whole"
        return "false_stop" if text.startswith(whole) else "wrong"


class Client(asyncio.Protocol):
    """A client with one connection, which is made anew when it was lost."""

    def __init__(self, address: tuple[str, int], timeout_s: float = 30) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._has_left = False
        self._done: asyncio.Future[Reply] | None = None
        self._reply = Reply()
        self._began = 0.0
        self.answers = asyncio.Event()
        """Words of the answer have come."""
        self._pieces: list[bytes] = []

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for the end of its answer, whatever that be."""
        loop = asyncio.get_running_loop()
        self._began = time.perf_counter()
        self._reply = Reply(began=self._began)
        self.answers.clear()
        self._has_left = False
        transport = self._transport
        if transport is None:
            try:
                transport, _ = await loop.create_connection(lambda: self, *self._address)
            except OSError:
                return Reply(began=self._began, seconds=0.0, failure="refused")
            if self._has_left:
                self.close()
                return self._reply
        self._parser = httptools.HttpResponseParser(self)
        self._pieces = []
        self._done = loop.create_future()
        timer = loop.call_later(self._timeout_s, self._give_up)
        transport.write(request)
        try:
            return await self._done
        finally:
            timer.cancel()

    def close(self) -> None:
        """Leave; an answer under way ends as it is."""
        self._has_left = True
        if self._transport:
            self._transport.abort()
            self._transport = None
        self._finish()

    def _give_up(self) -> None:
        self._reply.failure = "timeout"
        self.close()

    def _finish(self) -> None:
        if self._done and not self._done.done():
            self._reply.seconds = time.perf_counter() - self._began
            self._reply.body = b"".join(self._pieces)
            self._done.set_result(self._reply)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by the server."""
        del exc
        self._transport = None
        if self._done and not self._done.done():
            headers = self._reply.headers
            framed = {"content-length", "transfer-encoding"} & headers.keys()
            self._reply.ended = bool(headers) and not framed
            self._finish()

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The status is known."""
        self._reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if math.isnan(self._reply.first_s) and b"w0 " in body:
            self._reply.first_s = time.perf_counter() - self._began
            self.answers.set()
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer has ended."""
        self._reply.ended = True
        if self._transport and not self._parser.should_keep_alive():
            self._transport.close()
            self._transport = None
        self._finish()


@dataclass(frozen=True, slots=True)
class Report:
    """What a run of load found. Times are of whole answers, in ms."""

    seconds: float
    per_s: float
    """Whole answers a second."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    first_p50_ms: float
    """From the question to the first words."""
    first_p99_ms: float
    kinds: dict[str, int]
    """Answers by `Reply.kind`."""

    @property
    def num_bad(self) -> int:
        """Answers that are not whole."""
        return sum(self.kinds.values()) - self.kinds.get("whole", 0)


class Tally:
    """Gathers replies and sums them up.

    Args:
        target: what was asked.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._text = target.text
        self.kinds: Counter[str] = Counter()
        self._times: list[float] = []
        self._firsts: list[float] = []

    def add(self, reply: Reply, late_s: float = 0.0) -> str:
        """Count a reply that was asked for so late: its kind."""
        kind = reply.kind(self._text, self._target.stream)
        self.kinds[kind] += 1
        if kind == "whole":
            self._times.append(reply.seconds + late_s)
            self._firsts.append(reply.first_s + late_s)
        return kind

    def report(self, seconds: float) -> Report:
        """The sum of a run that took so long."""
        times, firsts = sorted(self._times), sorted(self._firsts)
        return Report(
            seconds=round(seconds, 3),
            per_s=round(len(times) / seconds, 2),
            p50_ms=_ms(times, 0.5),
            p90_ms=_ms(times, 0.9),
            p99_ms=_ms(times, 0.99),
            max_ms=_ms(times, 1),
            first_p50_ms=_ms(firsts, 0.5),
            first_p99_ms=_ms(firsts, 0.99),
            kinds=dict(self.kinds),
        )


def _ms(ordered: list[float], share: float) -> float:
    """A quantile by the nearest rank, in ms; NaN of nothing."""
    if not ordered:
        return math.nan
    return round(1000 * ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)


class Numbers:
    """Requests to a target, each with a number of its own."""

    _last = random.Random().randrange(10**7)  # noqa: S311 -- only unlike earlier runs

    def __init__(self, target: Target) -> None:
        self._before, _, self._after = target.request().partition(_NUMBER)

    def next(self) -> bytes:
        """The next request."""
        Numbers._last = (Numbers._last + 1) % 10**8
        return b"%s%08d%s" % (self._before, Numbers._last, self._after)


async def closed(
    target: Target,
    clients: int,
    seconds: float,
    *,
    warm_s: float = 0.5,
    timeout_s: float = 30,
    most: int | None = None,
) -> Report:
    """Clients that ask again as soon as they are answered.

    Args:
        target: what is asked.
        clients: how many.
        seconds: how long new requests are made, after the warm-up.
        warm_s: what ends within this first time does not count.
        timeout_s: when an answer is given up.
        most: requests in all.
    """
    numbers, tally = Numbers(target), Tally(target)
    left = math.inf if most is None else most
    began = time.perf_counter()
    stop = began + warm_s + seconds

    async def one() -> None:
        nonlocal left
        client = Client(target.address, timeout_s)
        while left > 0 and time.perf_counter() < stop:
            left -= 1
            reply = await client.ask(numbers.next())
            now = time.perf_counter()
            if began + warm_s <= now <= stop or reply.failure:
                tally.add(reply)
            if reply.failure == "refused":
                await asyncio.sleep(0.05)
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    took = time.perf_counter() - began - warm_s
    return tally.report(min(took, seconds))


async def opened(
    target: Target,
    rate: float,
    seconds: float,
    *,
    warm_s: float = 0.5,
    most_open: int = 512,
    keeps: bool = True,
    timeout_s: float = 30,
    seed: int = 0,
    on_reply: Callable[[str, Reply], None] | None = None,
) -> Report:
    """Requests that come when they come, answered or not.

    Args:
        target: what is asked.
        rate: arrivals a second on average.
        seconds: how long they come, after the warm-up.
        warm_s: what comes within this first time does not count.
        most_open: requests under way at most; what comes above counts as `overrun`.
        keeps: whether connections are used again.
        timeout_s: when an answer is given up.
        seed: of the times of arrival.
        on_reply: called with each reply and its kind.
    """
    numbers, tally = Numbers(target), Tally(target)
    chance = random.Random(seed)  # noqa: S311 -- arrivals that can be repeated
    idle: list[Client] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        client = idle.pop() if idle else Client(target.address, timeout_s)
        late_s = time.perf_counter() - due
        reply = await client.ask(numbers.next())
        if keeps:
            idle.append(client)
        else:
            client.close()
        if due < began + warm_s:
            return
        kind = tally.add(reply, late_s)
        if on_reply:
            on_reply(kind, reply)

    began = due = time.perf_counter()
    while (due := due + chance.expovariate(rate)) < began + warm_s + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(tasks) >= most_open:
            tally.kinds["overrun"] += 1
            continue
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    return tally.report(seconds)


async def upload(target: Target, size: int, seconds: float) -> int:
    """Send one chat with a large picture slowly: the status of the answer.

    Args:
        target: where to.
        size: bytes of the body, about.
        seconds: how long it takes to send.
    """
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * size}"}}
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}
    body = orjson.dumps({"model": target.model, "messages": [message]})
    reader, writer = await asyncio.open_connection(*target.address)
    writer.write(target.head(len(body)))
    step = 16384
    for start in range(0, len(body), step):
        writer.write(body[start : start + step])
        await writer.drain()
        await asyncio.sleep(seconds * step / len(body))
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, help="arrivals a second: an open loop")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    target = Target(options.url, options.key, options.model, options.stream)
    if options.rate:
        work: Any = opened(target, options.rate, options.seconds)
    else:
        work = closed(target, options.clients, options.seconds)
    import uvloop

    json.dump(asdict(uvloop.run(work)), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
