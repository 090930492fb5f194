"""The application over an engine that plays a script: routes, streams, failures, draining."""

import asyncio
from typing import Any

import orjson
import pytest
from tests.engines.fake import FakeEngine

from dialoop.chat.template import Template
from dialoop.core.errors import UpstreamError
from dialoop.serve.app import App, AppSettings
from dialoop.serve.openai import Limits, read_chat

ANSWER = "Send it back within thirty days."
ASK = {"model": "m", "messages": [{"role": "user", "content": "Where is my order?"}]}


class Call:
    """One request, driven by hand as an ASGI server would."""

    def __init__(
        self, app: App, path: str, body: Any = None, method: str = "", key: str | None = None
    ) -> None:
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        method = method or ("GET" if body is None else "POST")
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": data, "more_body": False})
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = False
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    async def _send(self, event: Any) -> None:
        if event["type"] == "http.response.start":
            self.status, self.headers = event["status"], dict(event["headers"])
        else:
            self.body += event["body"]
            self.ended = not event.get("more_body", False)

    def hang_up(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def done(self) -> "Call":
        await asyncio.wait_for(self.task, 10)
        return self

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Any]:
        parts = self.body.split(b"\n\n")
        assert parts.pop() == b""
        assert all(part.startswith(b"data: ") for part in parts)
        texts = [part.removeprefix(b"data: ") for part in parts]
        return [text if text == b"[DONE]" else orjson.loads(text) for text in texts]


def app_of(template: Template, engine: FakeEngine | None = None, **settings: Any) -> App:
    engine = engine or FakeEngine(template.tokenizer.encode(ANSWER))
    fields = {"model": "m", "api_key": None, "max_open": 8} | settings
    return App(engine, template, AppSettings(**fields))


def ask(
    template: Template, path: str, body: Any = None, app: App | None = None, **call: Any
) -> Call:
    """One call to the end."""

    async def work() -> Call:
        return await Call(app or app_of(template), path, body, **call).done()

    return asyncio.run(work())


def test_a_chat_completion(template: Template) -> None:
    call = ask(template, "/v1/chat/completions", ASK)
    assert (call.status, call.ended) == (200, True)
    (choice,) = call.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop"
    count = len(template.tokenizer.encode(ANSWER))
    assert call.json["usage"]["completion_tokens"] == count
    assert call.headers[b"x-request-id"]


def test_a_stream_says_the_same_and_ends_with_done(template: Template) -> None:
    fields = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    *chunks, usage, end = ask(template, "/v1/chat/completions", ASK | fields).events
    assert end == b"[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2 * len(template.tokenizer.encode(ANSWER))
    for index in range(2):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == ANSWER
        assert [c["finish_reason"] for c in own][-1] == "stop"
        assert {c["finish_reason"] for c in own[:-1]} == {None}
    assert len({chunk["id"] for chunk in chunks}) == 1


TOOL = {"type": "function", "function": {"name": "look_up"}}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"place": "Kiel"}}\n</tool_call>'


def saying(template: Template, words: str) -> App:
    return app_of(template, FakeEngine(template.tokenizer.encode(words), max_length=1024))


@pytest.mark.parametrize("is_parallel", [True, False])
def test_calls_are_taken_out_of_the_answer(template: Template, is_parallel: bool) -> None:
    body = ASK | {"tools": [TOOL], "parallel_tool_calls": is_parallel}
    app = saying(template, f"Let me see.\n{CALL}\n{CALL}")
    (choice,) = ask(template, "/v1/chat/completions", body, app).json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    calls = choice["message"]["tool_calls"]
    assert len(calls) == (2 if is_parallel else 1)
    assert calls[0]["function"] == {"name": "look_up", "arguments": '{"place": "Kiel"}'}
    assert len({call["id"] for call in calls}) == len(calls)


def test_a_stream_gives_each_call_whole(template: Template) -> None:
    app = saying(template, f"Let me see.\n{CALL}\n{CALL}")
    body = ASK | {"tools": [TOOL], "stream": True}
    *chunks, _ = ask(template, "/v1/chat/completions", body, app).events
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert calls[1]["function"]["name"] == "look_up"
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_without_calls_is_text(template: Template) -> None:
    app = saying(template, "No <tool_call> here.")
    (choice,) = ask(template, "/v1/chat/completions", ASK | {"tools": [TOOL]}, app).json["choices"]
    assert choice["message"]["content"] == "No <tool_call> here."
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_adapters_are_loaded_by_clients_only_where_they_may(template: Template) -> None:
    order = {"lora_name": "tone", "lora_path": "/x"}
    assert ask(template, "/v1/load_lora_adapter", order).status == 404
    app = app_of(template, may_load_adapters=True)
    refused = ask(template, "/v1/load_lora_adapter", {"lora_name": "tone"}, app)
    assert (refused.status, refused.json["error"]["param"]) == (400, "lora_path")
    refused = ask(template, "/v1/load_lora_adapter", order, app)
    assert (refused.status, refused.json["error"]["param"]) == (400, "lora_path")
    refused = ask(template, "/v1/load_lora_adapter", order | {"lora_name": "m"}, app)
    assert "`m` is served already" in refused.json["error"]["message"]
    refused = ask(template, "/v1/unload_lora_adapter", {"lora_name": "tone"}, app)
    assert (refused.status, refused.json["error"]["code"]) == (404, "model_not_found")


def test_a_text_completion_with_echo(template: Template) -> None:
    body = {"model": "m", "prompt": ["Where", "How"], "echo": True, "max_tokens": 50}
    call = ask(template, "/v1/completions", body)
    assert [c["text"] for c in call.json["choices"]] == ["Where" + ANSWER, "How" + ANSWER]
    assert [c["index"] for c in call.json["choices"]] == [0, 1]


def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_and_no_done(
    template: Template,
) -> None:
    engine = FakeEngine(template.tokenizer.encode(ANSWER), fail_after=4)
    call = ask(template, "/v1/chat/completions", ASK | {"stream": True}, app_of(template, engine))
    assert (call.status, call.ended) == (200, True)
    assert "has died (signal 9)" in call.events[-1]["error"]["message"]
    assert all("error" in e or e["choices"][0]["finish_reason"] is None for e in call.events)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_engine_that_dies_before_the_first_token_is_a_503(
    template: Template, is_stream: bool
) -> None:
    engine = FakeEngine(template.tokenizer.encode(ANSWER), fail_after=0)
    body = ASK | {"stream": is_stream}
    call = ask(template, "/v1/chat/completions", body, app_of(template, engine))
    assert call.status == 503
    assert call.json["error"]["code"] == "engine_unavailable"
    assert call.headers[b"retry-after"] == b"2"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_hangs_up_aborts_its_generation(template: Template, is_stream: bool) -> None:
    async def work() -> None:
        engine = FakeEngine(template.tokenizer.encode(ANSWER), gate=asyncio.Event())
        app = app_of(template, engine)
        call = Call(app, "/v1/chat/completions", ASK | {"stream": is_stream, "n": 2})
        await engine.wait_requests(2)
        call.hang_up()
        await call.done()
        assert engine.num_aborted == 2
        assert app.num_open == 0
        page = (await Call(app, "/metrics").done()).body.decode()
        assert 'path="/v1/chat/completions",status="499"} 1.0' in page

    asyncio.run(work())


def test_too_many_requests_get_429(template: Template) -> None:
    async def work() -> None:
        gate = asyncio.Event()
        engine = FakeEngine(template.tokenizer.encode(ANSWER), gate=gate)
        app = app_of(template, engine, max_open=2)
        open_calls = [Call(app, "/v1/chat/completions", ASK) for _ in range(2)]
        await engine.wait_requests(2)
        refused = await Call(app, "/v1/chat/completions", ASK).done()
        assert (refused.status, refused.headers[b"retry-after"]) == (429, b"1")
        assert refused.json["error"]["type"] == "rate_limit_error"
        gate.set()
        assert [(await call.done()).status for call in open_calls] == [200, 200]
        assert (await Call(app, "/v1/chat/completions", ASK).done()).status == 200

    asyncio.run(work())


def test_draining_finishes_what_is_open_and_refuses_what_comes(template: Template) -> None:
    async def work() -> None:
        gate = asyncio.Event()
        engine = FakeEngine(template.tokenizer.encode(ANSWER), gate=gate)
        app = app_of(template, engine)
        call = Call(app, "/v1/chat/completions", ASK | {"stream": True})
        await engine.wait_requests(1)
        drained = asyncio.create_task(app.drain())
        await asyncio.sleep(0)
        refused = await Call(app, "/v1/chat/completions", ASK).done()
        assert (refused.status, refused.json["error"]["type"]) == (503, "server_error")
        assert (await Call(app, "/health/ready").done()).status == 503
        assert (await Call(app, "/health/live").done()).status == 200
        assert not drained.done()
        gate.set()
        assert (await call.done()).events[-1] == b"[DONE]"
        await asyncio.wait_for(drained, 5)

    asyncio.run(work())


def test_the_ids_of_a_request_are_told(template: Template) -> None:
    told = ask(template, "/tokenize", ASK).json
    (sent,) = read_chat(ASK, template, Limits(256, "m")).requests
    assert told == {
        "tokens": list(sent.prompt_ids),
        "count": len(sent.prompt_ids),
        "max_model_len": 256,
    }
    assert ask(template, "/tokenize", ASK, app=app_of(template, api_key="secret")).status == 401


def test_the_key_is_asked_for_on_v1_only(template: Template) -> None:
    app = app_of(template, api_key="secret")
    assert ask(template, "/v1/models", app=app).status == 401
    assert (
        ask(template, "/v1/models", app=app, key="wrong").json["error"]["code"] == "invalid_api_key"
    )
    assert ask(template, "/v1/models", app=app, key="secret").status == 200
    assert ask(template, "/health", app=app).status == 200


def test_models_and_health(template: Template) -> None:
    assert [m["id"] for m in ask(template, "/v1/models").json["data"]] == ["m"]
    assert ask(template, "/v1/models/m").json["max_model_len"] == 256
    assert ask(template, "/v1/models/x").json["error"]["code"] == "model_not_found"
    for path in ("/health", "/ready", "/health/ready"):
        assert ask(template, path).json == {"status": "ready", "model": "m"}
    for path in ("/live", "/health/live"):
        assert ask(template, path).json == {"status": "alive"}


def test_a_dead_engine_is_not_ready(template: Template) -> None:
    engine = FakeEngine([5])
    engine.failure = UpstreamError("the engine's process has died (signal 9)")
    app = app_of(template, engine)
    assert ask(template, "/health", app=app).status == 503
    assert "dialoop_engine_up 0.0" in ask(template, "/metrics", app=app).body.decode()


@pytest.mark.parametrize(
    ("path", "body", "method", "status", "words"),
    [
        ("/v1/nothing", None, "GET", 404, "nothing is served at /v1/nothing"),
        ("/v1/chat/completions", None, "GET", 405, "GET is not allowed"),
        ("/v1/models", b"{}", "POST", 405, "POST is not allowed"),
        ("/v1/chat/completions", b"{", "POST", 400, "the body is not JSON"),
        ("/v1/chat/completions", b"[]", "POST", 400, "not a JSON object"),
        ("/v1/chat/completions", b" " * (33 * 2**20), "POST", 413, "larger than 32 MiB"),
    ],
)
def test_wrong_requests_get_openais_error_shape(
    template: Template, path: str, body: Any, method: str, status: int, words: str
) -> None:
    call = ask(template, path, body, method=method)
    assert call.status == status
    assert words in call.json["error"]["message"]
    assert call.json["error"].keys() == {"message", "type", "param", "code"}


def test_metrics_count_tokens_and_requests(template: Template) -> None:
    app = app_of(template)
    ask(template, "/v1/chat/completions", ASK, app)
    page = ask(template, "/metrics", app=app).body.decode()
    count = len(template.tokenizer.encode(ANSWER))
    assert f"dialoop_generated_tokens_total {count:.1f}" in page
    assert 'dialoop_requests_total{path="/v1/chat/completions",status="200"} 1.0' in page
    assert "dialoop_first_token_seconds_count 1.0" in page
