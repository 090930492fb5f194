"""Asking over HTTP, by both clients, against a server that answers with what it was asked."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dialoop.chat.message import message
from dialoop.core.errors import UpstreamError
from dialoop.quickstart.ask import _by_openai, _by_urllib, ask


class Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word = asked["messages"][-1]["content"]
        status = 500 if word == "fail" else 200
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": asked["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": f" {word}! "},
                }
            ],
        }
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_answers_come_in_the_order_of_the_questions(url: str) -> None:
    dialogues = [[message("system", "s"), message("user", word)] for word in ("one", "two")]
    assert asyncio.run(ask(url, "m", dialogues, 8)) == ["one!", "two!"]


REQUEST = {"model": "m", "messages": [{"role": "user", "content": "three"}], "max_tokens": 8}


@pytest.mark.parametrize("by", [_by_openai, _by_urllib])
def test_both_clients_say_the_same(url: str, by: Any) -> None:
    assert asyncio.run(by(url, [REQUEST])) == ["three!"]


def test_a_refusal_is_an_upstream_error(url: str) -> None:
    failing = REQUEST | {"messages": [{"role": "user", "content": "fail"}]}
    with pytest.raises(UpstreamError, match=r"the served model did not answer: .*500"):
        asyncio.run(_by_urllib(url, [failing]))
