"""Other projects' conformance suites against a real gateway: `make conformance`.

`dialoop gateway` runs before two engines: `dialoop serve` with the starter model, which writes text
and sees no images, and a scripted one that calls tools and takes images, so that the gateway's own
part of every test is seen. Before the latter come clients too (clients.py). With `--write` the
tables go to docs/conformance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conformance import clients
from tests.gateway.scripted import CUT, MODEL, Engine, Json, chunk, says

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"
FORMATS = {"openai-chat": "Chat Completions", "open-responses": "Open Responses"}
_NUM_TRIES = 3
_MAX_LENGTH = 1024
"""Tokens of the starter model: small models may never come to an end."""
DEVIATIONS = (
    "Images go to engines as they are; a model that sees none refuses them with status 400. So the "
    "image tests fail with the starter model, which is text only, and pass with an engine that "
    "takes images.",
    "`POST /v1/responses/compact` is not served (404, which the suite allows): the context policy "
    "of a model keeps long dialogues within its window.",
    "Responses: `background`, `prompt` (stored prompts), `context_management`, built-in tools "
    "(only `function` is called), files and `item_reference` are refused by name with status 400.",
    "Responses: `temperature` and `top_p` are told as 1 where the request gives none; the engine's "
    "own defaults hold then.",
    "Responses: `truncation` defaults to the model's context policy rather than to `disabled`.",
    "Responses: `GET /v1/responses/{id}?stream=true` is refused; reasoning is told as "
    "`reasoning_text`, never as a summary, and given back it is kept but not sent to the engine.",
    "Streams of responses end with `data: [DONE]` after the terminal event, as Open Responses "
    "wants and OpenAI does not.",
    "Ids of items are the gateway's own: those that a client gives are not taken over.",
    "Conversations: `GET .../items` of an empty conversation tells empty `first_id` and `last_id`.",
)


EMBEDDINGS: Json = {
    "object": "list",
    "model": MODEL,
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}


class Obliging(Engine):
    """Calls the first tool where one is required, and else says the same always.

    It gives a name where a schema is asked for, and breaks off when the user says "cut".
    """

    def script_of(self, body: Json) -> list[Any]:
        """What is said to a request."""
        if (body.get("response_format") or {}).get("type") == "json_schema":
            return says('{"name": "Ada"}')
        if body["messages"][-1]["content"] == "cut":
            return [*says("Hello there, friend")[:3], CUT]
        if body.get("tool_choice") != "required":
            return says("Hello there, friend")
        function = {"name": body["tools"][0]["function"]["name"], "arguments": "{}"}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        return [chunk(role="assistant", tool_calls=[call]), chunk("tool_calls")]


@contextmanager
def scripted() -> Generator[int]:
    """The scripted engine's port."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    ports: list[int] = []

    async def main() -> None:
        server = await asyncio.start_server(
            Obliging(other={"/embeddings": EMBEDDINGS}).answer, "127.0.0.1", 0
        )
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        async with server:
            await server.serve_forever()

    task = loop.create_task(main())
    thread = threading.Thread(target=lambda: _run(loop, task))
    thread.start()
    ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    finally:
        loop.close()


@contextmanager
def program(words: list[str], url: str, limit_s: float) -> Generator[None]:
    """A verb of ours as a process, from when it is ready at `url`."""
    command = [sys.executable, "-c", "from dialoop.cli.main import entry; entry()", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + limit_s
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"`dialoop {words[0]}` is not ready at {url}")
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@contextmanager
def gateway(engine: str, folder: Path, *, keys: bool = False) -> Generator[str]:
    """A gateway's base URL before an engine's."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    job = folder / f"{port}.json"
    text = {"port": port, "engines": [engine], "require_keys": keys}
    job.write_text(json.dumps(text | {"database": f"sqlite:///{folder}/{port}.db"}))
    with program(["gateway", str(job)], base + "/ready", 60):
        yield base + "/v1"


def suites(engine: str, model: str, folder: Path) -> dict[str, list[Json]]:
    """Results of each format's tests through a gateway before an engine's base URL."""
    with gateway(engine, folder) as url:
        return {name: llm_comply(name, url, model) for name in FORMATS}


def smoke(engine: str, folder: Path) -> clients.Results:
    """Results of the clients through gateways before the scripted engine's base URL."""
    with gateway(engine, folder) as free, gateway(engine, folder, keys=True) as keyed:
        return clients.run_all(free, keyed, MODEL, folder)


def llm_comply(name: str, url: str, model: str) -> list[Json]:
    """What llm-comply finds; answers are sampled, so what fails has two more tries."""
    results = {one["id"]: one for one in _llm_comply(name, url, model)}
    for _ in range(_NUM_TRIES - 1):
        failed = [one for one, result in results.items() if result["status"] == "failed"]
        if failed:
            again = _llm_comply(name, url, model, "-f", ",".join(failed))
            results |= {one["id"]: one for one in again}
    return list(results.values())


def _llm_comply(name: str, url: str, model: str, *more: str) -> list[Json]:
    command = [sys.executable, "-m", "llm_comply.cli", "--format", name, "-u", url, "-m", model]
    command += more
    done = subprocess.run(
        [*command, "-k", "any", "--json", "--timeout", "120"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if not done.stdout.strip():
        raise SystemExit(f"llm-comply said nothing: {done.stderr[-500:]}")
    return json.loads(done.stdout)["results"]


def page(found: dict[str, dict[str, list[Json]]], told_by: clients.Results) -> str:
    """The page of docs/conformance.md."""
    engines = list(found)
    lines = [
        "# Conformance",
        "",
        "Made by `make conformance` from a run against `dialoop gateway`: do not edit.",
        "",
        f"llm-comply {version('llm-comply')}, whose tests check bodies and every event of streams "
        f"against the published schemas. Answers are sampled and end at {_MAX_LENGTH} tokens: a "
        f"test that fails is tried {_NUM_TRIES} times.",
    ]
    for name, title in FORMATS.items():
        rows = [found[engine][name] for engine in engines]
        lines += ["", f"## {title}", "", "| test | " + " | ".join(engines) + " |"]
        lines.append("| --- " * (1 + len(engines)) + "|")
        for results in zip(*rows, strict=True):
            told = " | ".join(_cell(result) for result in results)
            lines.append(f"| {results[0]['name']} (`{results[0]['id']}`) | {told} |")
        sums = [sum(one["status"] == "passed" for one in results) for results in rows]
        ran = [sum(one["status"] != "skipped" for one in results) for results in rows]
        told = " | ".join(f"{a} of {b}" for a, b in zip(sums, ran, strict=True))
        lines.append(f"| **passed** | {told} |")
    lines += clients.section(told_by)
    lines += ["", "## Deviations", "", *(f"- {one}" for one in DEVIATIONS), ""]
    return "\n".join(lines)


def _cell(result: Json) -> str:
    problems = [*result.get("errors", ()), *result.get("warnings", ())]
    told = "; ".join(problems).replace("|", "\\|").replace("\n", " ")
    return result["status"] + (f": {told[:160]}" if told else "")


def main() -> int:
    """Run all; 1 where a test fails that the scripted engine cannot be blamed for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--only-scripted", action="store_true", help="without a model")
    asked = parser.parse_args()
    found: dict[str, dict[str, list[Json]]] = {}
    with tempfile.TemporaryDirectory() as name, scripted() as engine:
        folder = Path(name)
        if not asked.only_scripted:
            port = free_port()
            words = ["serve", "--model", "starter", "--port", str(port)]
            words += ["--max_length", str(_MAX_LENGTH)]
            with program(words, f"http://127.0.0.1:{port}/v1/models", 600):
                url = f"http://127.0.0.1:{port}/v1"
                found["`dialoop serve`, starter"] = suites(url, "starter", folder)
        url = f"http://127.0.0.1:{engine}/v1"
        found["scripted engine"] = suites(url, MODEL, folder)
        told_by = smoke(url, folder)
    text = page(found, told_by)
    sys.stdout.write(text)
    if asked.write:
        PAGE.write_text(text, encoding="utf-8")
    results = [one for suite in found["scripted engine"].values() for one in suite]
    checks = [told for one in told_by.values() for told in one.values()]
    failed = any(told.startswith("failed") for told in checks)
    return int(failed or any(one["status"] == "failed" for one in results))


if __name__ == "__main__":
    sys.exit(main())
