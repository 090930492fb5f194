"""Requests that are wrong in every way: never a status 500, never a hang; the next is answered."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.engine import refusal, running
from tests.gateway.scripted import MODEL, gateway

from dialoop.gateway import ask

if TYPE_CHECKING:
    from collections.abc import Generator

Json = dict[str, Any]
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank",
         "/v1/responses", "/v1/feedback", "/v1/context")  # fmt: skip
GOOD: Json = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
_POST = b"POST /v1/chat/completions HTTP/1.1\r\n"


def refused(request: Json) -> bytes | None:
    """What engines that check their fields say, and the fake one does not."""
    for name in ("max_tokens", "max_completion_tokens"):
        if type(request.get(name, 1)) is not int:
            return refusal(400, f"{name}: a whole number is required", param=name)
    if request.get("stream") and (request.get("n") or isinstance(request.get("prompt"), list)):
        return refusal(400, "one choice only")
    return None


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Generator[int]:
    """A gateway in a loop of its own."""
    loop = asyncio.new_event_loop()
    ready, ports = threading.Event(), [0]
    over = asyncio.Event()

    async def serve() -> None:
        kinds = ["chat", "text", "embed", "rerank"]
        models = {MODEL: {"versions": [{"model": MODEL}], "kinds": kinds}}
        async with (
            running() as engine,
            gateway(
                tmp_path_factory.mktemp("hostile"),
                engines=[engine.url],
                models=models,
                sizes={"max_body_bytes": 2**20},
                patience={"client_s": 1, "first_token_s": 1, "request_s": 2},
            ) as live,
        ):
            engine.says = refused
            ports[0] = int(live.url.rpartition(":")[2])
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(20)
    yield ports[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(20)
    loop.close()


def status_of(port: int, raw: bytes, *, ends: bool = True) -> int:
    """The status of the response to raw bytes; 0 where the connection was closed without one."""
    with closing(socket.create_connection(("127.0.0.1", port))) as sock:
        sock.settimeout(2)  # a hang is a failure
        try:
            sock.sendall(raw)
            if ends:
                sock.shutdown(socket.SHUT_WR) if not raw.strip() else None
            data = b""
            while b"\r\n" not in data:
                more = sock.recv(2**16)
                if not more:
                    return 0
                data += more
        except ConnectionError:
            return 0
    return int(data.split(b" ", 2)[1])


def post(port: int, path: str, body: bytes, *headers: tuple[bytes, bytes]) -> int:
    """The status of the response to a request."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % (path.encode(), len(body))
    return status_of(port, head + b"".join(lines) + b"\r\n" + body)


def check(port: int, status: int, *allowed: int) -> None:
    """A refusal, or an answer; and the gateway goes on."""
    assert status in (allowed or (200, 400, 404, 405, 408, 411, 413, 414, 415, 422, 431))
    assert post(port, PATHS[0], orjson.dumps(GOOD)) == 200


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "\r\nx: y", "\0", "a" * 3000, MODEL, 10**400, -1, 0, 2**63])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "text", "index", ""]), inner)
    ),
    max_leaves=6,
)
FIELDS = sorted({name for known in ask._KNOWN.values() for name in known} | {"input", "id"})


@FUZZ
@given(st.sampled_from(PATHS), st.binary(max_size=200))
def test_bytes(port: int, path: str, body: bytes):
    check(port, post(port, path, body))


@FUZZ
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_wrong_types(port: int, path: str, found: Json):
    good: Json = {
        PATHS[0]: {"messages": GOOD["messages"]},
        PATHS[1]: {"prompt": "hi"},
        PATHS[2]: {"input": "hi"},
        PATHS[3]: {"query": "hi", "documents": ["a"]},
        PATHS[4]: {"input": "hi"},
    }.get(path, {})
    body = {"model": MODEL, **good, **found}
    check(port, post(port, path, json.dumps(body).encode("utf-8", "surrogatepass")))


@FUZZ
@given(st.sampled_from(PATHS[:5]), st.sampled_from(FIELDS), VALUES)
def test_one_wrong_field(port: int, path: str, name: str, value: Any):
    messages: Any = {"messages": GOOD["messages"]} if path == PATHS[0] else {}
    body = {"model": MODEL, "prompt" if path == PATHS[1] else "input": "hi"} | messages
    if path == PATHS[0]:
        del body["input"]
    check(port, post(port, path, json.dumps(body | {name: value}).encode("utf-8", "surrogatepass")))


@FUZZ
@given(st.lists(VALUES, min_size=1, max_size=3))
def test_wrong_messages(port: int, messages: list[Any]):
    body = GOOD | {"messages": [*messages, *GOOD["messages"]]}
    check(port, post(port, PATHS[0], json.dumps(body).encode("utf-8", "surrogatepass")))


@pytest.mark.parametrize("depth", [250, 260, 1000, 100_000])
@pytest.mark.parametrize("path", PATHS)
def test_deep_nesting(port: int, path: str, depth: int):
    nested = "[" * depth + "]" * depth
    for name in ("logit_bias", "metadata", "input", "prompt", "tools"):
        body = json.dumps(GOOD)[:-1] + f', "{name}": {nested}}}'
        check(port, post(port, path, body.encode()))
    part = f'[{{"type": "text", "text": "hi", "more": {nested}}}]'
    for content in (nested, part):
        body = f'{{"model": "m", "messages": [{{"role": "user", "content": {content}}}]}}'
        check(port, post(port, path, body.encode()))


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "9" * 5000, "1" * 25, "NaN", "Infinity", "-0", "1.0", "0x10"]
)
@pytest.mark.parametrize("name", ["max_tokens", "n", "temperature", "seed", "top_p", "stream"])
def test_huge_numbers(port: int, name: str, number: str):
    body = json.dumps(GOOD)[:-1] + f', "{name}": {number}}}'
    check(port, post(port, PATHS[0], body.replace('"max_tokens": 3, ', "").encode()))


@pytest.mark.parametrize("body", [b"\xff\xfe", b'{"model": "\xc3\x28"}', b'{"model": "\\ud800"}'])
def test_invalid_utf_8(port: int, body: bytes):
    check(port, post(port, PATHS[0], body), 400, 404)


HEADERS = st.sampled_from(
    [b"x-request-id", b"x-session-id", b"traceparent", b"authorization", b"origin", b"content-type",
     b"x-forwarded-for", b"accept", b"cookie", b"expect", b"upgrade", b"connection"]
)  # fmt: skip


@FUZZ
@given(st.lists(st.tuples(HEADERS, st.binary(max_size=40)), max_size=3))
def test_headers(port: int, headers: list[tuple[bytes, bytes]]):
    # a value with a line end may say anything to HTTP, even that more is to come
    safe = [(name, value.replace(b"\n", b" ").replace(b"\r", b" ")) for name, value in headers]
    check(port, post(port, PATHS[0], orjson.dumps(GOOD), *safe))


@pytest.mark.parametrize(
    "value",
    [b"a\r\nx-injected: 1", b"a\nx-injected: 1", b"a\rb", b"a\0b", b"\xe4\xbd\xa0", b"a" * 300],
)
def test_nothing_is_injected_into_headers(port: int, value: bytes):
    with closing(socket.create_connection(("127.0.0.1", port))) as sock:
        sock.settimeout(2)
        sock.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\nx-request-id: " + value + b"\r\n\r\n")
        head = sock.recv(2**16).partition(b"\r\n\r\n")[0].lower()
    assert b"x-injected" not in head
    assert b"\0" not in head
    assert int(head.split(b" ", 2)[1]) in (200, 400)
    check(port, 200)


@pytest.mark.parametrize("name", ["a\r\nx-injected: 1", "a\nb", "\0", "../..", "a" * 100_000, ""])
def test_names_of_models(port: int, name: str):
    check(port, post(port, PATHS[0], orjson.dumps(GOOD | {"model": name})), 404, 400)


@pytest.mark.parametrize(
    ("raw", "allowed"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", (413,)),
        (_POST + b"content-length: " + b"9" * 30 + b"\r\n\r\n", (400,)),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n", (400,)),
        (_POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", (400,)),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\n"
         b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", (400,)),
        (_POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", (400, 0)),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\n\r\n{", (408,)),
        (b"GET / HTTP/9.9\r\n\r\n", (400,)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", (400, 0)),
        (b"GET /live HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", (400, 0)),
        (b"GET /live HTTP/1.1\r\n" + b"x: a\r\n" * 100_000 + b"\r\n", (400, 0)),
        (b"GET /v1/models/%0d%0ax HTTP/1.1\r\n\r\n", (404,)),
        (b"GET /v1/models/%ff%fe HTTP/1.1\r\n\r\n", (404,)),
        (b"GET /%%% HTTP/1.1\r\n\r\n", (404,)),
        (b"GET http://x/live HTTP/1.1\r\n\r\n", (200, 404)),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", (400, 404, 405)),
        (b"DELETE /v1/chat/completions HTTP/1.1\r\n\r\n", (405,)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404)),
        (b"GET /live HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", (200, 400)),
    ],
    ids=range(20),
)  # fmt: skip
def test_heads(port: int, raw: bytes, allowed: tuple[int, ...]):
    check(port, status_of(port, raw), *allowed)


def test_bodies_in_chunks(port: int):
    body = orjson.dumps(GOOD)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    check(port, status_of(port, head + chunks), 200)
    large = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    check(port, status_of(port, head + large * 40), 413, 0)


def test_a_body_that_is_too_large(port: int):
    check(port, post(port, PATHS[0], b" " * (2**20 + 1)), 413, 0)
