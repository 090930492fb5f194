"""Traces: one from the client to the engine, as a collector reads them; texts only where asked."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.scripted import CUT, MODEL, Live, chunk, says, with_gateway

from dialoop.gateway import tracing
from dialoop.gateway.spec import TraceSettings
from dialoop.gateway.store.traces import Traces

Json = dict[str, Any]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHAT: Json = {"model": MODEL, "messages": [{"role": "user", "content": "my secret question"}]}


@dataclass
class Collector:
    """Takes exports, when its gate is open."""

    status: int = 200
    bodies: list[Json] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    port: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                size = int(head.split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(size))
                await self.gate.wait()
                self.heads.append(head)
                if self.status == 200:
                    self.bodies.append(body)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % self.status)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    @property
    def spans(self) -> list[Json]:
        return [
            span
            for body in self.bodies
            for resource in body["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


@asynccontextmanager
async def collecting(*, hangs: bool = False, **settings: Any) -> AsyncIterator[Collector]:
    collector = Collector(**settings)
    if not hangs:
        collector.gate.set()
    server = await asyncio.start_server(collector.answer, "127.0.0.1", collector.port)
    collector.port = server.sockets[0].getsockname()[1]
    try:
        yield collector
    finally:
        server.close()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def attributes(span: Json) -> Json:
    """By name, as plain values."""
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


def exporter(live: Live) -> tracing.Exporter:
    found = live.worker.app.parts.stores.books._exporter
    assert found is not None
    return found


async def kept(live: Live, request_id: str) -> Json:
    """The record of a request, out of the database."""
    parts = live.worker.app.parts
    await parts.stores.books.flush()
    found = await Traces(parts.database).get("default", request_id)
    assert found is not None
    return found.body


def with_collector(tmp_path: Path, work: Any, **traces: Any) -> None:
    """A gateway that exports to a collector, which the work may start and stop."""
    collector = Collector(port=free_port())
    traces = {"access_log": False, "otlp_endpoint": collector.endpoint} | traces

    async def whole(live: Live) -> None:
        await work(live, collector)

    with_gateway(tmp_path, whole, traces=traces)


def test_one_trace_goes_from_the_client_through_the_gateway_to_the_engine(tmp_path: Path) -> None:
    async def work(live: Live, collector: Collector) -> None:
        async with collecting(port=collector.port) as collector:
            await live.http.get("/v1/models")
            collector.bodies.clear()
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"}
            body = CHAT | {"temperature": 0.5, "max_tokens": 9, "seed": 3}
            answer = await live.http.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
            assert answer.headers["x-request-id"] == "mine"
            await exporter(live).flush()
            root, engine = (s for s in collector.spans if s["traceId"] == TRACE)
            assert (root["parentSpanId"], engine["parentSpanId"]) == (SPAN, root["spanId"])
            assert f"traceparent: 00-{TRACE}-{engine['spanId']}-01\r\n" in live.engine.heads[-1]
            assert "x-request-id: mine\r\n" in live.engine.heads[-1]
            assert (root["name"], root["kind"]) == ("POST /v1/chat/completions", 2)
            assert (engine["name"], engine["kind"]) == (f"chat {MODEL}", 3)
            told = attributes(engine)
            assert (
                told
                | {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "dialoop",
                    "gen_ai.request.model": MODEL,
                    "gen_ai.request.temperature": 0.5,
                    "gen_ai.request.max_tokens": "9",
                    "gen_ai.request.seed": "3",
                    "gen_ai.response.model": MODEL,
                    "gen_ai.usage.input_tokens": "7",
                    "gen_ai.usage.output_tokens": "5",
                    "gen_ai.usage.cache_read.input_tokens": "2",
                }
                == told
            )
            assert told["gen_ai.response.finish_reasons"] == {"values": [{"stringValue": "stop"}]}
            assert attributes(root)["http.response.status_code"] == "200"
            assert attributes(root)["dialoop.request_id"] == "mine"
            assert (await kept(live, "mine"))["trace_id"] == TRACE
            assert "secret" not in json.dumps(collector.bodies)
            assert int(root["startTimeUnixNano"]) <= int(engine["startTimeUnixNano"])
            assert abs(int(root["endTimeUnixNano"]) / 1e9 - time.time()) < 20

    with_collector(tmp_path, work)


def test_a_collector_s_own_schema_takes_the_export(tmp_path: Path) -> None:
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")

    async def work(live: Live, collector: Collector) -> None:
        async with collecting(port=collector.port) as collector:
            live.engine.script = [chunk(content="He"), CUT]
            await live.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
            await exporter(live).flush()
        (body,) = collector.bodies
        for span in collector.spans:  # OTLP's JSON has ids in hexadecimal, protobuf's in base64
            for name in ("traceId", "spanId", "parentSpanId"):
                span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
        request = json_format.ParseDict(body, service.ExportTraceServiceRequest())
        (resource,) = request.resource_spans
        names = {one.key: one.value.string_value for one in resource.resource.attributes}
        assert names["service.name"] == "desk"
        root, engine = resource.scope_spans[0].spans
        assert (len(root.trace_id), len(root.span_id), root.parent_span_id) == (16, 8, b"")
        assert engine.parent_span_id == root.span_id
        assert root.status.code == engine.status.code == 2, "the stream was cut"
        assert root.status.message == "engine_failed"
        assert root.end_time_unix_nano >= root.start_time_unix_nano > 10**18
        assert "authorization: bearer abc" in collector.heads[0]

    settings = {"service_name": "desk", "otlp_headers": {"authorization": "Bearer abc"}}
    with_collector(tmp_path, work, **settings)


def test_an_engine_that_failed_has_a_span_of_its_own(tmp_path: Path) -> None:
    async def work(live: Live, collector: Collector) -> None:
        async with collecting(port=collector.port) as collector:
            live.engine.status = 500
            assert (await live.http.post("/v1/chat/completions", json=CHAT)).status_code == 502
            await exporter(live).flush()
            root, engine = collector.spans
            assert root["status"] == {"code": 2, "message": "502"}
            assert engine["status"] == {"code": 2, "message": "status 500: scripted"}
            assert attributes(engine)["gen_ai.request.model"] == MODEL

    with_collector(tmp_path, work)


@pytest.mark.parametrize(("flags", "num"), [("00", 0), ("01", 2)])
def test_the_client_s_choice_is_followed(tmp_path: Path, flags: str, num: int) -> None:
    async def work(live: Live, collector: Collector) -> None:
        async with collecting(port=collector.port) as collector:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-{flags}"}
            await live.http.post("/v1/chat/completions", json=CHAT, headers=headers)
            await exporter(live).flush()
            assert len(collector.spans) == num
            head = live.engine.heads[-1]
            assert f"traceparent: 00-{TRACE}-" in head
            assert f"-{flags}\r\n" in head

    with_collector(tmp_path, work, sample=0.0)


@pytest.mark.parametrize("sample", [0.0, 1.0])
def test_of_traces_that_begin_here_a_share_is_sent(tmp_path: Path, sample: float) -> None:
    async def work(live: Live, collector: Collector) -> None:
        async with collecting(port=collector.port) as collector:
            for wrong in ("", f"00-{'0' * 32}-{SPAN}-01", "00-xyz", f"99-{TRACE}-{SPAN}-01"):
                headers = {"traceparent": wrong} if wrong else {}
                await live.http.post("/v1/chat/completions", json=CHAT, headers=headers)
            await exporter(live).flush()
            assert len(collector.spans) == 8 * sample
            assert all(span["traceId"] != TRACE for span in collector.spans)
            assert len({span["traceId"] for span in collector.spans}) == 4 * sample

    with_collector(tmp_path, work, sample=sample)


def test_what_could_not_be_sent_is_sent_later(tmp_path: Path) -> None:
    async def work(live: Live, collector: Collector) -> None:
        await live.http.post("/v1/chat/completions", json=CHAT)
        await exporter(live).flush()  # nothing listens
        async with collecting(port=collector.port, status=503) as collector:
            await exporter(live).flush()
            assert not collector.spans
            collector.status = 200
            await exporter(live).flush()
            assert len(collector.spans) == 2
            assert exporter(live).num_lost == 0
            collector.status = 400  # refused for good
            await live.http.post("/v1/chat/completions", json=CHAT)
            await exporter(live).flush()
            assert exporter(live).num_lost == 1

    with_collector(tmp_path, work)


def test_a_collector_that_hangs_holds_up_no_request_and_no_usage(tmp_path: Path) -> None:
    async def work(live: Live, collector: Collector) -> None:
        async with collecting(port=collector.port, hangs=True) as collector:
            await live.http.post("/v1/chat/completions", json=CHAT)
            sending = asyncio.create_task(exporter(live).flush())
            await asyncio.sleep(0.05)
            began = time.monotonic()
            answer = await live.http.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 200
            record = await kept(live, answer.headers["x-request-id"])
            assert record["status"] == 200
            assert time.monotonic() - began < 2, "the collector may take 10 s"
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            collector.gate.set()
            await exporter(live).flush()
            sent = {span["spanId"] for span in collector.spans}  # twice is once to a collector
            assert len(sent) == 4, "what was under way is not lost"

    with_collector(tmp_path, work)


def test_what_waits_for_a_collector_is_bounded_and_the_oldest_goes(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        settings = TraceSettings(otlp_endpoint=f"http://127.0.0.1:{free_port()}/v1/traces")
        waiting = tracing.Exporter(settings)
        context = tracing.begin(b"", 1.0)
        for number in range(tracing._MAX_WAITING + 5):
            waiting.add(context, [tracing.Span(str(number), 1.0, 2.0)], 0.0)
        assert waiting.num_lost == 5
        assert len(waiting._waiting) == tracing._MAX_WAITING
        await waiting.flush()
        assert waiting._waiting[0][1][0].name == "5", "in order still"
        waiting.close()

    asyncio.run(work())


@pytest.mark.parametrize("is_stream", [False, True])
def test_texts_are_kept_only_where_asked(tmp_path: Path, is_stream: bool) -> None:
    async def work(live: Live) -> None:
        body = CHAT | {"stream": is_stream, "temperature": 0}
        body["tools"] = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
        answer = await live.http.post("/v1/chat/completions", json=body)
        record = await kept(live, answer.headers["x-request-id"])
        if not live.worker.app.parts.job.traces.content:
            assert "content" not in record
            assert "secret" not in json.dumps(record)
            return
        content = record["content"]
        assert content["messages"] == CHAT["messages"]
        assert content["tools"] == body["tools"]
        (choice,) = content["choices"]
        assert choice["message"]["content"] == "Hello there"
        assert choice["finish_reason"] == "stop"

    for content in (False, True):
        with_gateway(tmp_path, work, traces={"access_log": False, "content": content})


def test_of_a_cut_answer_what_was_delivered_is_kept(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        live.engine.script = [chunk(content="He"), chunk(content="llo"), CUT]
        answer = await live.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        record = await kept(live, answer.headers["x-request-id"])
        (choice,) = record["content"]["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", None)

    with_gateway(tmp_path, work, traces={"access_log": False, "content": True})


def test_an_answer_out_of_the_cache_is_kept_too(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        for is_stream in (False, False, True):
            body = CHAT | {"temperature": 0, "stream": is_stream}
            answer = await live.http.post("/v1/chat/completions", json=body)
            record = await kept(live, answer.headers["x-request-id"])
            assert record["content"]["choices"][0]["message"]["content"] == "Hello there"
        assert record["cache"] == "hit"
        assert len(live.engine.asked) == 1

    traces = {"access_log": False, "content": True}
    with_gateway(tmp_path, work, traces=traces, cache={"scope": "tenant"})


def test_the_access_log_is_json_without_texts_and_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(live: Live) -> None:
        headers = {"authorization": "Bearer sk-dl-hidden", "x-request-id": 'a"b'}
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", {"model": "unknown", "messages": CHAT["messages"]}),
            ("/nowhere/else?token=hidden", CHAT),
        ):
            await live.http.post(path, json=body, headers=headers)
        live.engine.script = says("kept to ourselves")
        await live.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        await live.worker.app.parts.stores.books.flush()

    with_gateway(tmp_path, work, traces={})
    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/chat/completions", 200),
        ("/v1/chat/completions", 404),
        ("other", 404),
        ("/v1/chat/completions", 200),
    ]
    assert lines[0]["request_id"] == 'a"b'
    assert (lines[0]["prompt_tokens"], lines[0]["completion_tokens"]) == (7, 5)
    assert lines[3]["first_token_ms"] >= 0
    assert not [word for word in ("secret", "hidden", "ourselves", "Hello") if word in text]
