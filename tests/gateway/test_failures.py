"""What clients see of engines that fail; engines, of clients that leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import openai
import pytest
from benchmarks.gateway import engine as processes
from benchmarks.gateway.engine import Fault, answer
from tests.gateway.engine import FakeEngine, refusal, request_of, response, running, serving
from tests.gateway.scripted import MODEL, Live, gateway

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

SHORT = {"first_token_s": 0.4, "stall_s": 0.4, "request_s": 20, "queue_s": 5}
TOKENS = 12
WHOLE = answer(TOKENS)


@asynccontextmanager
async def scene(
    folder: Path, num: int = 2, **settings: Any
) -> AsyncGenerator[tuple[Live, list[FakeEngine]]]:
    """A gateway before engines that are asked in turn, the first one first."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(running(f"e{n}")) for n in range(num)]
        wanted: dict[str, Any] = {
            "engines": [one.url for one in engines],
            "routing": "round_robin",
            "patience": SHORT,
        }
        live = await stack.enter_async_context(gateway(folder, **wanted | settings))
        await settled(live)
        yield live, engines


async def settled(live: Live) -> None:
    """New connections only: one that the engine closed may be replaced, with the request."""
    for one in live.worker.app.parts.pool.engines:
        await one.was_asked.wait()
        await asyncio.sleep(0.01)
        one.wire.drop_idle()


def body(*, stream: bool = False, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": MODEL, "messages": messages, "stream": stream, "max_tokens": TOKENS} | more


async def ask(live: Live, *, stream: bool = False, **more: Any) -> tuple[int, Any]:
    """Status, and the document or the events of a stream."""
    sent = body(stream=stream, **more)
    found = await live.http.post("/v1/chat/completions", json=sent)
    if found.status_code != 200 or not stream:
        return found.status_code, found.json()
    *events, done, rest = found.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")  # every stream ends so, with whole events
    return 200, [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(found: Any) -> str:
    """What was said."""
    if isinstance(found, dict):
        return found["choices"][0]["message"]["content"]
    choices = [choice for event in found for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def reasons(events: list[Any]) -> list[str]:
    """The finish reasons of a stream."""
    choices = [choice for event in events for choice in event.get("choices", ())]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


async def soon(holds: Callable[[], bool], limit_s: float = 0.5) -> None:
    """Wait until something holds."""
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, "not in time"
        await asyncio.sleep(0.005)


def is_idle(live: Live) -> bool:
    """Whether nothing is left of requests."""
    app = live.worker.app
    pool = app.parts.pool
    return app.num_open == pool.num_waiting == sum(one.num_open for one in pool.engines) == 0


EARLY: list[Any] = [
    Fault("reset"),
    Fault("status", status=500),
    Fault("status", status=503),
    *[
        Fault(kind, after=1)  # the chunk that only names the role is no content
        for kind in ("reset_after", "close_after", "cut_line", "no_done", "freeze_after",
                     "freeze_pinging", "error_event")
    ],
    Fault("freeze"),
]  # fmt: skip
RAW: dict[str, bytes] = {
    "garbage": b"SSH-2.0-OpenSSH\r\n",
    "no_json": response(b"<html>", content_type="application/json"),
    "no_object": response(b"[1]"),
    "only_done": response(b"data: [DONE]\n\n"),
    "strange": response(b'data: {"choices": [7]}\n\n'),
    "error": response(b'{"error": {"message": "out of memory", "code": 500}}'),
    "error_event": response(b'data: {"error": {"message": "out of memory"}}\n\n'),
    "aborted": response(b'{"choices": [{"message": {}, "finish_reason": "abort"}]}'),
}


@pytest.mark.parametrize("fault", EARLY, ids=lambda fault: f"{fault.kind}-{fault.status}")
async def test_before_the_first_content_another_engine_is_asked(tmp_path: Path, fault: Fault):
    async with scene(tmp_path) as (live, (first, second)):
        first.behave(fault)
        status, found = await ask(live, stream=True)
        assert (status, text_of(found), reasons(found)) == (200, WHOLE, ["stop"])
        assert (first.num_asked, second.num_asked) == (1, 1)
        assert is_idle(live)


@pytest.mark.parametrize(
    "fault", [one for one in EARLY if "freeze" not in one.kind], ids=lambda fault: fault.kind
)
async def test_whole_answers_are_asked_elsewhere_too(tmp_path: Path, fault: Fault):
    async with scene(tmp_path) as (live, (first, second)):
        first.behave(fault)
        status, found = await ask(live)
        assert (status, text_of(found)) == (200, WHOLE)
        assert (first.num_asked, second.num_asked) == (1, 1)


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize("stream", [True, False])
async def test_answers_that_are_none_are_asked_elsewhere(tmp_path: Path, raw: str, *, stream: bool):
    async with scene(tmp_path) as (live, (first, second)):
        first.says = lambda request: RAW[raw]
        status, found = await ask(live, stream=stream)
        assert (status, text_of(found)) == (200, WHOLE)
        assert (first.num_asked, second.num_asked) == (1, 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault("reset"), 502, "engine_failed"),
        (Fault("status", status=500), 502, "engine_failed"),
        (Fault("freeze"), 504, "engine_stalled"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
async def test_no_engine_is_asked_twice_and_the_client_is_told(
    tmp_path: Path, fault: Fault, status: int, code: str, *, stream: bool
):
    patience = SHORT | ({} if stream else {"request_s": 0.5})
    async with scene(tmp_path, 3, patience=patience) as (live, engines):
        for one in engines:
            one.behave(fault)
        got, found = await ask(live, stream=stream)
        assert (got, found["error"]["code"]) == (status, code)
        once = [1, 0, 0] if fault.kind == "freeze" and not stream else [1, 1, 1]
        assert [one.num_asked for one in engines] == once
        assert is_idle(live)


LATE = ("reset_after", "close_after", "cut_line", "no_done", "error_event", "freeze_after",
        "freeze_pinging")  # fmt: skip


@pytest.mark.parametrize("kind", LATE)
async def test_after_the_first_content_the_stream_says_that_it_was_cut(tmp_path: Path, kind: Any):
    patience = SHORT | {"first_token_s": 60}
    async with scene(tmp_path, patience=patience) as (live, (first, second)):
        first.behave(Fault(kind, after=5), chunk_s=0.01)
        began = time.monotonic()
        status, events = await ask(live, stream=True)
        assert time.monotonic() - began < 1.5
        assert status == 200
        assert text_of(events) == answer(4)  # all that came
        assert reasons(events) == []
        code = "engine_stalled" if "freeze" in kind else "engine_failed"
        assert events[-1]["error"]["code"] == code
        assert events[-1]["error"]["type"] == "server_error"
        assert sum("error" in event for event in events) == 1
        assert second.num_asked == 0
        assert is_idle(live)


@pytest.mark.parametrize("kind", LATE)
async def test_users_of_the_official_client_get_its_error(tmp_path: Path, kind: Any):
    async with scene(tmp_path, 1) as (live, (engine,)):
        engine.behave(Fault(kind, after=5), chunk_s=0.01)
        seen: list[str] = []

        async def read() -> None:
            async for chunk in await live.client.chat.completions.create(**body(stream=True)):
                seen.extend(choice.delta.content or "" for choice in chunk.choices)

        with pytest.raises(openai.APIError, match="the answer was cut"):
            await read()
        assert "".join(seen) == answer(4)


def frames(*deltas: tuple[str, str | None], end: bytes = b"") -> bytes:
    """A stream that keeps its connection open."""
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
        for text, finish in deltas
    ]
    data = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in chunks) + end
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n" % (len(data), data)


async def test_an_answer_that_says_why_it_ended_is_whole_whatever_follows(tmp_path: Path):
    async with scene(tmp_path, 1) as (live, (engine,)):
        engine.says = lambda request: frames(("Hi", None), ("", "stop"))  # and then nothing
        _, events = await ask(live, stream=True)
        assert (text_of(events), reasons(events)) == ("Hi", ["stop"])
        assert not any("error" in event for event in events)
        engine.says = lambda request: frames(("Hi", None), ("", "stop")) + b"0\r\n\r\n"
        _, events = await ask(live, stream=True)
        assert reasons(events) == ["stop"]


async def test_what_came_together_with_the_error_is_delivered(tmp_path: Path):
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    async with scene(tmp_path, 1) as (live, (engine,)):
        first = frames(("Hi", None))
        second = frames((" you", None), (" two", None), end=error).partition(b"\r\n\r\n")[2]

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request_of(reader)
            writer.write(first)
            await asyncio.sleep(0.05)
            writer.write(second)
            await reader.read()

        async with serving(script) as url:
            job = live.worker._job
            entry = job.engines[0].model_copy(update={"url": url})
            await live.worker.reload(job.model_copy(update={"engines": (entry,)}))
            _, events = await ask(live, stream=True)
        assert text_of(events) == "Hi you two"
        assert events[-1]["error"]["message"].endswith("out of memory")
        assert engine.num_asked == 0


async def test_a_refusal_of_the_request_is_passed_and_opens_no_breaker(tmp_path: Path):
    said = refusal(400, "temperature: too hot", param="temperature", code="bad_value")
    async with scene(tmp_path) as (live, engines):
        for one in engines:
            one.says = lambda request: said
        for number in range(40):
            status, found = await ask(live, stream=bool(number % 2))
            assert status == 400
            assert found["error"]["message"] == "temperature: too hot"
            assert (found["error"]["param"], found["error"]["code"]) == ("temperature", "bad_value")
        assert sum(one.num_asked for one in engines) == 40  # nobody else was asked
        pool = live.worker.app.parts.pool
        assert {one.breaker.state(time.monotonic()) for one in pool.engines} == {"closed"}
        for one in engines:
            one.says = None
        assert (await ask(live))[0] == 200


async def test_a_busy_engine_is_passed_by_and_says_when_to_come_again(tmp_path: Path):
    busy = refusal(429, "too many", headers={"retry_after": "7"})
    async with scene(tmp_path) as (live, (first, second)):
        first.says = lambda request: busy
        assert text_of((await ask(live))[1]) == WHOLE
        second.says = lambda request: busy
        found = await live.http.post("/v1/chat/completions", json=body())
        assert (found.status_code, found.headers["retry-after"]) == (429, "7")
        assert found.json()["error"]["code"] == "overloaded"


async def test_a_refused_key_of_the_gateway_is_not_the_client_s(tmp_path: Path):
    async with scene(tmp_path) as (live, (first, second)):
        for one in (first, second):
            one.says = lambda request: refusal(401, "no such key")
        for _ in range(10):
            status, found = await ask(live)
            assert (status, found["error"]["code"]) == (502, "engine_failed")
        assert (first.num_asked, second.num_asked) == (10, 10)  # and opens no breaker


async def test_failures_open_the_breaker_and_one_request_tries_again(tmp_path: Path):
    breaker = {"num_failures": 3, "open_s": 0.3}
    async with scene(tmp_path, 1, breaker=breaker) as (live, (engine,)):
        engine.behave(Fault("status", status=500))
        for _ in range(3):
            assert (await ask(live))[0] == 502
        for _ in range(3):
            status, found = await ask(live)
            assert (status, found["error"]["code"]) == (503, "engine_unavailable")
        assert engine.num_asked == 3
        engine.behave()
        await asyncio.sleep(0.35)
        assert (await ask(live))[0] == 200
        assert (await ask(live))[0] == 200


async def test_streams_that_break_count_for_the_breaker(tmp_path: Path):
    breaker = {"num_failures": 3, "open_s": 60}
    async with scene(tmp_path, 1, breaker=breaker) as (live, (engine,)):
        engine.behave(Fault("close_after", after=5), chunk_s=0.01)
        for _ in range(3):
            await ask(live, stream=True)
        assert (await ask(live, stream=True))[0] == 503


async def test_a_stream_that_the_client_left_says_nothing_of_the_engine(tmp_path: Path):
    breaker = {"num_failures": 2, "open_s": 60}
    async with scene(tmp_path, 1, breaker=breaker) as (live, (engine,)):
        engine.behave(Fault("status", status=500))
        await ask(live)
        engine.behave(chunk_s=0.1)
        client = Raw(live)
        await client.send(body(stream=True))
        assert b"w0" in await client.read() + await client.read()
        client.leave()
        await soon(lambda: is_idle(live))
        engine.behave(Fault("status", status=500))
        assert (await ask(live))[0] == 502
        assert (await ask(live))[0] == 503  # two in a row


async def slow_to_list(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that takes its time to say what it serves."""
    choices = [{"index": 0, "message": {"content": WHOLE}, "finish_reason": "stop"}]
    while True:
        if b" /v1/models " in await request_of(reader):
            await asyncio.sleep(0.3)
            writer.write(response(b'{"data": [{"id": "own"}]}'))
        else:
            writer.write(response(json.dumps({"choices": choices}).encode()))


async def test_the_first_request_finds_the_engines_own_models(tmp_path: Path):
    async with (
        serving(slow_to_list) as url,
        serving(slow_to_list) as other,
        gateway(tmp_path, engines=[url], models={}) as live,
    ):
        assert (await ask(live, model="own"))[0] == 200
        job = live.worker._job
        entry = job.engines[0].model_copy(update={"url": other})
        await live.worker.reload(job.model_copy(update={"engines": (entry,)}))
        assert (await ask(live, model="own"))[0] == 200


async def test_a_stream_without_content_is_left_when_its_engine_is_found_dead(tmp_path: Path):
    health = {"interval_s": 0.1, "timeout_s": 0.3, "num_failures": 2}
    with processes.running("slow") as slow:
        async with running() as good:
            entries = [slow.url + "/v1", good.url]
            policy: dict[str, Any] = {"routing": "round_robin", "health": health}
            async with gateway(tmp_path, engines=entries, **policy) as live:
                await settled(live)
                # the head of a stream at once, and then nothing: to checks as to clients
                await asyncio.to_thread(lambda: slow.behave(first_s=30))
                found = await asyncio.wait_for(
                    asyncio.gather(*(ask(live, stream=True) for _ in range(4))), 5
                )
                assert [text_of(one) for _, one in found] == [WHOLE] * 4
                report = await asyncio.to_thread(slow.report)
                assert report["counts"]["requests"] >= 2


async def test_a_fallback_is_named(tmp_path: Path):
    models = {
        MODEL: {"versions": [{"model": "big", "engines": ["a"]}], "fallbacks": ["small"]},
        "small": {"versions": [{"model": "tiny", "engines": ["b"]}]},
    }
    async with running() as first, running() as second:
        entries = [{"name": "a", "url": first.url}, {"name": "b", "url": second.url}]
        async with gateway(tmp_path, engines=entries, models=models, patience=SHORT) as live:
            await settled(live)
            first.behave(Fault("reset"))
            for stream in (False, True):
                sent = body(stream=stream)
                found = await live.http.post("/v1/chat/completions", json=sent)
                assert found.headers["x-dialoop-fallback"] == "small"
                assert '"model":"small"' in found.text
                assert '"model":"fake-model"' not in found.text
            assert [request["model"] for request in first.asked] == ["big"] * 2
            assert [request["model"] for request in second.asked] == ["tiny"] * 2


async def test_an_engine_that_failed_is_not_asked_for_the_fallback(tmp_path: Path):
    models = {
        MODEL: {"versions": [{"model": "big"}], "fallbacks": ["small"]},
        "small": {"versions": [{"model": "tiny"}]},
    }
    async with scene(tmp_path, 1, models=models) as (live, (engine,)):
        engine.behave(Fault("reset"))
        assert (await ask(live))[0] == 502
        assert engine.num_asked == 1


async def test_a_full_line_is_refused_at_once_and_a_long_wait_in_time(tmp_path: Path):
    settings = {
        "sizes": {"max_waiting": 1},
        "patience": SHORT | {"queue_s": 0.4},
    }
    async with running() as engine:
        engine.behave(first_s=1.0)
        entries = [{"url": engine.url, "max_concurrent": 1}]
        async with gateway(tmp_path, engines=entries, **settings) as live:
            first = asyncio.create_task(ask(live))
            await soon(lambda: engine.num_asked == 1)
            second = asyncio.create_task(ask(live))
            await soon(lambda: live.worker.app.parts.pool.num_waiting == 1)
            began = time.monotonic()
            found = await live.http.post("/v1/chat/completions", json=body())
            assert time.monotonic() - began < 0.3
            assert (found.status_code, found.headers["retry-after"]) == (429, "1")
            status, late = await second
            assert (status, late["error"]["code"]) == (429, "overloaded")
            assert "0.4 s" in late["error"]["message"]
            assert (await first)[0] == 200
            assert is_idle(live)


async def test_a_deadline_holds_in_line_and_in_a_stream(tmp_path: Path):
    async with running() as engine:
        entries = [{"url": engine.url, "max_concurrent": 1}]
        patience = {"request_s": 0.6}
        async with gateway(tmp_path, engines=entries, patience=patience) as live:
            engine.behave(chunk_s=0.1)
            pool = live.worker.app.parts.pool
            place = await pool.lease(pool.find(MODEL), None, frozenset(), time.monotonic() + 9)
            status, found = await ask(live)
            assert (status, found["error"]["code"]) == (504, "engine_stalled")
            pool.release(place)
            _, events = await ask(live, stream=True)
            assert events[-1]["error"]["code"] == "engine_stalled"
            assert reasons(events) == []
            engine.behave()
            (upstream,) = live.worker.app.parts.pool.engines
            assert upstream.breaker._failures == 0  # it was not to blame
            assert (await ask(live))[0] == 200


class Raw:
    """A client that does what clients should not."""

    def __init__(self, live: Live, receive_bytes: int = 0) -> None:
        self.sock = socket.socket()
        if receive_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
        self.sock.setblocking(False)

    async def send(self, sent: dict[str, Any]) -> None:
        """Ask."""
        data = json.dumps(sent).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(self.sock, head % len(data) + data)

    async def read(self, size: int = 2**16) -> bytes:
        """What has come."""
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    def leave(self, *, hard: bool = False) -> None:
        """Close: with an end of the stream, or with a reset."""
        if hard:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("phase", ["line", "first", "stream", "whole"])
async def test_an_engine_learns_that_the_client_left(tmp_path: Path, phase: str, *, hard: bool):
    async with running() as engine:
        entries = [{"url": engine.url, "max_concurrent": 1 if phase == "line" else 9}]
        async with gateway(tmp_path, engines=entries) as live:
            engine.behave(first_s=0 if phase == "stream" else 30, chunk_s=0.05)
            others = []
            if phase == "line":
                others.append(asyncio.create_task(ask(live)))
                await soon(lambda: engine.num_asked == 1)
            client = Raw(live)
            await client.send(body(stream=phase != "whole", max_tokens=1000))
            pool = live.worker.app.parts.pool
            if phase == "line":
                await soon(lambda: pool.num_waiting == 1)
            elif phase == "stream":
                assert b"w0" in await client.read() + await client.read()
            else:
                await soon(lambda: engine.num_asked == 1)
            client.leave(hard=hard)
            if phase == "line":
                await soon(lambda: pool.num_waiting == 0)
                assert engine.num_asked == 1
                assert not engine.aborts
            else:
                await soon(lambda: len(engine.aborts) == 1)
                await soon(lambda: is_idle(live))
            for one in others:
                one.cancel()
                with suppress(asyncio.CancelledError):
                    await one
            await soon(lambda: is_idle(live))
            assert not pool.engines[0].wire._pending


async def abort(live: Live, number: int) -> None:
    """Ask and leave, in one of the phases."""
    client = Raw(live)
    await client.send(body(stream=number % 3 > 0, max_tokens=50))
    if number % 3 == 2:
        await client.read()
    else:
        await asyncio.sleep(0.01)
    client.leave(hard=number % 2 > 0)


async def test_a_thousand_clients_that_leave_leave_nothing_behind(tmp_path: Path):
    async with running() as engine:
        entries = [{"url": engine.url, "max_concurrent": 30}]
        async with gateway(tmp_path, engines=entries) as live:
            engine.behave(first_s=0.02, chunk_s=0.02)
            await asyncio.gather(*(abort(live, number) for number in range(40)))
            await soon(lambda: is_idle(live) and engine.num_open == 0, 5)
            await asyncio.sleep(0.1)
            num_tasks = len(asyncio.all_tasks())
            num_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            for start in range(0, 1000, 50):
                await asyncio.gather(*(abort(live, number + start) for number in range(50)))
            await soon(lambda: is_idle(live) and engine.num_open == 0, 5)
            await soon(lambda: len(asyncio.all_tasks()) <= num_tasks, 2)
            await soon(lambda: len(os.listdir("/proc/self/fd")) <= num_files + 2, 2)  # noqa: PTH208
            (upstream,) = live.worker.app.parts.pool.engines
            assert not upstream.wire._pending
            assert not upstream._waiting
            engine.behave()
            assert (await ask(live))[0] == 200


def flood(num_chunks: int):
    """An engine that sends megabytes."""
    event = b"data: " + json.dumps(
        {"choices": [{"index": 0, "delta": {"content": "x" * 60_000}, "finish_reason": None}]}
    ).encode() + b"\n\n"  # fmt: skip
    last = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(num_chunks):
            writer.write(event)
            await writer.drain()
        writer.write(last + b"data: [DONE]\n\n")

    return script


async def test_a_client_that_reads_slowly_is_not_the_engine_s_fault(tmp_path: Path):
    patience = {"stall_s": 0.3, "client_s": 10}
    async with (
        serving(flood(300)) as url,
        gateway(tmp_path, engines=[url], patience=patience) as live,
    ):
        client = Raw(live, 2**16)
        await client.send(body(stream=True))
        await asyncio.sleep(1.2)  # four times as long as an engine may say nothing
        data = bytearray()
        async with asyncio.timeout(20):
            while not data.endswith(b"0\r\n\r\n"):
                data += await client.read(2**20)
        assert b'"error"' not in data
        assert data.count(b"x" * 60_000) >= 290  # the rest is cut by the frames of HTTP
        client.leave()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path, *, stream: bool):
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if stream:
            with suppress(ConnectionError):
                await flood(1000)(reader, writer)
            gone.set()
            return
        await request_of(reader)
        message = {"content": "x" * 30_000_000}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        writer.write(response(json.dumps({"choices": choices}).encode()))
        await writer.drain()
        gone.set()

    async with (
        serving(script) as url,
        gateway(tmp_path, engines=[url], patience={"client_s": 0.5}) as live,
    ):
        client = Raw(live, 2**16)
        await client.send(body(stream=stream))
        async with asyncio.timeout(8):
            await gone.wait()
        await soon(lambda: is_idle(live), 3)
        await soon(lambda: not live.worker.server.server_state.connections)
        client.leave()


async def test_a_client_that_sends_slowly_is_told(tmp_path: Path):
    async with scene(tmp_path, 1, patience={"client_s": 0.4}) as (live, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(live.url.split(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n")
        answered = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        while not answered.done():  # each byte in time, the whole never
            writer.write(b" ")
            await asyncio.wait((answered,), timeout=0.1)
        found = answered.result()
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in found
        writer.close()


async def test_an_engine_that_went_away_comes_back(tmp_path: Path):
    health = {"interval_s": 0.1, "timeout_s": 0.5, "num_failures": 1}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(running())
        async with gateway(tmp_path, engines=[engine.url], health=health) as live:
            assert (await ask(live))[0] == 200
            await stack.aclose()
            (upstream,) = live.worker.app.parts.pool.engines
            await soon(lambda: not upstream.is_healthy, 2)
            assert (await live.http.get("/ready")).status_code == 503
            status, found = await ask(live)
            assert (status, found["error"]["code"]) == (503, "engine_unavailable")
            async with running(port=engine.port):
                await soon(lambda: upstream.is_healthy, 2)
                assert (await live.http.get("/ready")).status_code == 200
                assert (await ask(live))[0] == 200


@pytest.mark.parametrize("models", [b"[]", b'{"data": 7}', b'{"data": ["x"]}', b"{", b""])
async def test_an_engine_that_lists_nonsense_is_checked_on(tmp_path: Path, models: bytes):
    sane = False

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            good = b'{"data": [{"id": "m"}]}'
            writer.write(response(good if sane else models))

    health = {"interval_s": 0.05, "probe": "models", "num_failures": 1}
    async with serving(script) as url, gateway(tmp_path, engines=[url], health=health) as live:
        (upstream,) = live.worker.app.parts.pool.engines
        if models != b'{"data": ["x"]}':  # that is a list
            await soon(lambda: not upstream.is_healthy, 2)
        sane = True
        await soon(lambda: upstream.is_healthy and upstream.models == ("m",), 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_frozen_engine_has_not_begun_is_asked_elsewhere(
    tmp_path: Path, *, stream: bool
):
    health = {"interval_s": 0.1, "timeout_s": 0.3, "num_failures": 2}
    with processes.running("frozen") as frozen:
        async with running() as good:
            entries = [frozen.url + "/v1", good.url]
            settings: dict[str, Any] = {"routing": "round_robin", "health": health}
            async with gateway(tmp_path, engines=entries, **settings) as live:
                frozen.signal(signal.SIGSTOP)
                try:
                    began = time.monotonic()
                    found = await asyncio.gather(*(ask(live, stream=stream) for _ in range(10)))
                    assert time.monotonic() - began < 3
                    assert [text_of(one) for _, one in found] == [WHOLE] * 10
                    assert (await ask(live))[0] == 200
                finally:
                    frozen.signal(signal.SIGCONT)
                upstream = live.worker.app.parts.pool.engines[0]
                await soon(lambda: upstream.is_healthy, 3)
                assert is_idle(live)


async def test_an_engine_that_is_killed_is_replaced_before_and_told_of_after(tmp_path: Path):
    with processes.running("mortal") as mortal:
        async with running() as good:
            entries = [mortal.url + "/v1", good.url]
            async with gateway(tmp_path, engines=entries, routing="round_robin") as live:
                await asyncio.to_thread(lambda: mortal.behave(chunk_s=0.1))
                good.behave(chunk_s=0.01)
                running_ones = [asyncio.create_task(ask(live, stream=True)) for _ in range(10)]
                await asyncio.sleep(0.5)
                mortal.signal(signal.SIGKILL)
                began = time.monotonic()
                after = await asyncio.gather(*(ask(live, stream=True) for _ in range(6)))
                assert [text_of(events) for _, events in after] == [WHOLE] * 6
                events = [events for _, events in await asyncio.gather(*running_ones)]
                assert time.monotonic() - began < 2
                cut = [one for one in events if "error" in one[-1]]
                assert len(cut) == 5
                assert not any(reasons(one) for one in cut)
                assert [text_of(one) for one in events if one not in cut] == [WHOLE] * 5
