"""The semantic cache in the gateway: whose answer is given, and what a model of vectors may do."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.scripted import MODEL, Engine, Live, says, with_gateway

from dialoop.gateway.spec import GatewayJob

Json = dict[str, Any]
VECTORS: dict[str, list[float]] = {
    "When do you open?": [3.0, 4.0],
    "What are your opening hours?": [3.1, 4.0],
    "Where are you?": [4.0, -3.0],
    "Open at 9?": [1.0, 0.0],
    "Open at 8?": [1.0, 0.0],
}
VERSION: Json = {"versions": [{"model": MODEL}]}
SETTINGS: Json = {
    "models": {MODEL: VERSION, "vectors": VERSION | {"kinds": ["embed"]}},
    "cache": {"scope": "tenant", "semantic": {"model": "vectors", "threshold": 0.99}},
}


class Both(Engine):
    """Also makes vectors."""

    delay_s = 0.0
    num_vectors = 0

    async def _serve(self, path: str, body: Json, writer: asyncio.StreamWriter) -> None:
        if path.endswith("/embeddings"):
            self.num_vectors += 1
            await asyncio.sleep(self.delay_s)
            vector = VECTORS[body["input"][0]]
            self.other["/embeddings"] = {"data": [{"index": 0, "embedding": vector}]}
        await super()._serve(path, body, writer)


def chats(live: Live) -> list[str]:
    return [body["messages"][-1]["content"] for body in live.engine.asked if "messages" in body]


async def ask(live: Live, text: str, **body: Any) -> tuple[str, str | None]:
    """The answer, and what the cache had to do with it."""
    messages = [{"role": "user", "content": text}]
    asked = {"model": MODEL, "temperature": 0, "messages": messages} | body
    answer = await live.http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    said = answer.json()["choices"][0]["message"]["content"] if not body.get("stream") else ""
    return said or answer.text, answer.headers.get("x-dialoop-cache")


def run(tmp_path: Path, work: Any, settings: Json = SETTINGS) -> None:
    with_gateway(tmp_path, work, engine=Both(), **settings)


def test_a_question_that_means_the_same_gets_the_same_answer(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        live.engine.script = says("At nine")
        assert await ask(live, "When do you open?") == ("At nine", None)
        live.engine.script = says("Another")
        assert await ask(live, "What are your opening hours?") == ("At nine", "similar")
        assert await ask(live, "When do you open?") == ("At nine", "hit")
        text, how = await ask(live, "What are your opening hours?", stream=True)
        assert (how, text.rstrip().endswith("[DONE]")) == ("similar", True)
        assert await ask(live, "Where are you?") == ("Another", None)
        assert chats(live) == ["When do you open?", "Where are you?"]

    run(tmp_path, work)


def test_other_numbers_or_anything_else_that_differs_is_another_question(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        for text, body in (
            ("Open at 9?", {}),
            ("Open at 8?", {}),
            ("Open at 9?", {"max_tokens": 5}),
        ):
            assert (await ask(live, text, **body))[1] is None
        count = live.engine.num_vectors  # pyright: ignore[reportAttributeAccessIssue]
        assert (await ask(live, "Open at 9?", cache=False))[1] is None
        assert live.engine.num_vectors == count  # pyright: ignore[reportAttributeAccessIssue]

    run(tmp_path, work)


def test_a_slow_model_of_vectors_costs_its_time_out_and_a_miss(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        live.engine.delay_s = 5.0  # pyright: ignore[reportAttributeAccessIssue]
        began = time.monotonic()
        assert (await ask(live, "When do you open?"))[0] == "Hello there"
        assert 0.2 <= time.monotonic() - began < 2
        (engine,) = live.worker.app.parts.pool.engines
        assert engine.num_open == 0

    semantic = {"model": "vectors", "timeout_s": 0.2}
    cache = {"scope": "tenant", "semantic": semantic}
    breaker = {"num_failures": 1}  # the engine is not to blame: it answers chats still
    run(tmp_path, work, SETTINGS | {"cache": cache, "breaker": breaker})


def test_vectors_that_are_none_cost_a_miss(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        VECTORS["Nothing?"] = []
        live.engine.other["/embeddings"] = {"data": []}
        assert (await ask(live, "Nothing?"))[0] == "Hello there"

    with_gateway(tmp_path, work, **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache": {"semantic": {"model": "vectors"}}}, "wants a `cache.scope` other than `off`"),
        (
            {"cache": {"scope": "key", "semantic": {"model": MODEL}}},
            f"no model `{MODEL}` with the kind `embed`",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: Json, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GatewayJob.model_validate({"engines": ["http://e/v1"]} | SETTINGS | changes)
