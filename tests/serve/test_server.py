"""A live server on a tiny model, asked by the official `openai` client; signals and ports."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from dialoop.chat.message import message
from dialoop.chat.template import Template
from dialoop.core.errors import UserError
from dialoop.core.events import ignore
from dialoop.engines.text import complete
from dialoop.serve.openai import Limits, read_chat
from dialoop.serve.run import RunningServer, bind, run, running
from dialoop.serve.spec import ServeJob

HELLO: Any = [{"role": "user", "content": "How do I return a lamp?"}]


class LiveServer:
    """A server in a thread with a loop of its own."""

    def __init__(self, job: ServeJob) -> None:
        self._job = job
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self.server: RunningServer
        self.loop: asyncio.AbstractEventLoop

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        async with running(self._job, ignore) as self.server:
            self._is_up.set()
            await self._stop.wait()

    def __enter__(self) -> "LiveServer":
        self._thread.start()
        assert self._is_up.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


@pytest.fixture(scope="module")
def live(checkpoint: Path) -> Iterator[LiveServer]:
    job = ServeJob(
        model=str(checkpoint), port=0, engine="transformers", device="cpu", dtype="fp32", threads=1
    )
    with LiveServer(job) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.server.url, api_key="any", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    settings: dict[str, Any] = {"model": "tiny-model", "messages": HELLO, "max_tokens": 12}
    create: Any = client.chat.completions.create
    return create(**(settings | {"temperature": 0} | fields))


def test_the_answer_is_the_engines(
    client: openai.OpenAI, live: LiveServer, template: Template
) -> None:
    limits = Limits(512, "m")
    body = {"model": "m", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    (request,) = read_chat(body, template, limits).requests
    assert request.prompt_ids == tuple(template.prompt_ids([message("user", HELLO[0]["content"])]))
    direct = asyncio.run_coroutine_threadsafe(
        complete(live.server.engine, template.tokenizer, request), live.loop
    ).result(30)
    found = ask(client)
    assert found.choices[0].message.content == direct.text
    assert found.usage.completion_tokens == direct.num_tokens
    assert found.usage.prompt_tokens == direct.num_prompt_tokens


def test_a_stream_joins_to_the_whole_answer(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens == ask(client).usage.completion_tokens


def test_a_seed_repeats_and_choices_differ(client: openai.OpenAI) -> None:
    fields = {"temperature": 1, "seed": 5, "n": 3}
    texts = [[c.message.content for c in ask(client, **fields).choices] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-model"]
    assert client.models.retrieve("tiny-model").owned_by == "dialoop"


def test_text_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(model="tiny-model", prompt="Where", max_tokens=5, echo=True)
    assert found.choices[0].text.startswith("Where")


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tools=[{"type": "web_search"}])
    assert caught.value.param == "tools"
    with pytest.raises(openai.NotFoundError):
        ask(client, model="other")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "x " * 600}])
    assert caught.value.code == "context_length_exceeded"


def test_a_client_that_closes_its_stream_stops_the_generation(
    client: openai.OpenAI, live: LiveServer
) -> None:
    def open_requests() -> int:
        return live.server.engine.num_open

    stream = ask(client, stream=True, max_tokens=400, stop=["no such text"])
    next(iter(stream))
    assert open_requests() == 1
    stream.close()
    deadline = time.monotonic() + 10
    while open_requests():
        assert time.monotonic() < deadline, "the generation goes on without its client"
        time.sleep(0.01)
    assert live.server.app.num_open == 0


def test_a_taken_port_is_an_error_and_never_another_port(checkpoint: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            run(ServeJob(model=str(checkpoint), port=port), ignore)
    assert "--port" in str(caught.value)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192.0.2.1:0"):
        bind("192.0.2.1", 0)
    with pytest.raises(UserError, match="host: `no such host` is no address"):
        bind("no such host", 0)


PROGRAM = """
import sys
from dialoop.core.errors import DialoopError
from dialoop.serve.run import run
from dialoop.serve.spec import ServeJob

job = ServeJob(model=sys.argv[1], port=0, engine="transformers", device="cpu", threads=1)
try:
    print(run(job, lambda event: print(event, flush=True)))
except DialoopError as error:
    print(error)
    sys.exit(error.exit_code)
"""


class Served:
    """`dialoop serve` in a process of its own."""

    def __init__(self, checkpoint: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(checkpoint)], stdout=subprocess.PIPE, text=True
        )
        self.url = self.read_until(r"serving at (\S+)'")

    def read_until(self, pattern: str) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError(f"the server ended without {pattern}")

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_sigterm_drains(checkpoint: Path) -> None:
    with Served(checkpoint) as served, openai.OpenAI(base_url=served.url, api_key="x") as client:
        client = client.with_options(max_retries=0)
        stream = iter(ask(client, stream=True, max_tokens=300))
        next(stream)
        served.process.send_signal(signal.SIGTERM)
        served.read_until("(draining)")
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert caught.value.status_code == 503
        *_, last = stream
        assert last.choices[0].finish_reason in {"stop", "length"}
        assert served.process.wait(30) == 0


def test_a_second_sigterm_stops_at_once(checkpoint: Path) -> None:
    with Served(checkpoint) as served, openai.OpenAI(base_url=served.url, api_key="x") as client:
        stream = iter(ask(client, stream=True, max_tokens=450, temperature=1, seed=3, n=16))
        next(stream)
        served.process.send_signal(signal.SIGTERM)
        served.read_until("(draining)")
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the engine was stopped"):
            list(stream)
        assert served.process.wait(30) == 0


def test_a_server_whose_engine_dies_ends_with_its_error(checkpoint: Path) -> None:
    with Served(checkpoint) as served:
        (worker,) = children(served.process.pid)
        os.kill(worker, signal.SIGKILL)
        served.read_until(r"(has died \(signal 9\))")
        assert served.process.wait(30) == 4


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (folder / "stat").exists():
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            found += [int(folder.name)] if int(fields[1]) == pid else []
    return found
