"""Hedging: a second engine is asked after a while, the first content wins, the other is stopped."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.engine import FakeEngine, running
from tests.gateway.scripted import MODEL, Live, gateway

Json = dict[str, Any]


def with_two(tmp_path: Path, work: Any, **patience: Any) -> None:
    """A gateway before two engines, which are asked in turn."""

    async def whole() -> None:
        async with running("a") as a, running("b") as b:
            settings = {
                "engines": [{"name": "a", "url": a.url}, {"name": "b", "url": b.url}],
                "routing": "round_robin",
                "patience": {"hedge_s": 0.1} | patience,
            }
            async with gateway(tmp_path, **settings) as live:
                await asyncio.wait_for(work(live, a, b), 30)
                assert all(one.num_open == 0 for one in live.worker.app.parts.pool.engines)

    asyncio.run(whole())


async def ask(live: Live, num: int = 0, **body: Any) -> tuple[int, str, float]:
    """Status, text and seconds of one chat."""
    began = time.monotonic()
    messages = [{"role": "user", "content": f"Question {num}"}]
    asked = {"model": MODEL, "messages": messages} | body
    answer = await live.http.post("/v1/chat/completions", json=asked)
    return answer.status_code, answer.text, time.monotonic() - began


def hedges(live: Live) -> Json:
    """How often the second one won and lost."""
    metric = live.worker.app.parts.metrics._hedges
    return {r: metric.labels(MODEL, r)._value.get() for r in ("won", "lost")}


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_slow_engine_s_answer_is_not_waited_for(tmp_path: Path, is_stream: bool) -> None:
    async def work(live: Live, a: FakeEngine, b: FakeEngine) -> None:
        a.behave("freeze")
        for num in range(4):
            status, text, took = await ask(live, num, stream=is_stream)
            assert status == 200
            assert took < 2
            assert "w0" in text
            assert text.rstrip().endswith("[DONE]") == is_stream
        assert (a.num_asked, b.num_asked) == (4, 4), "the second one takes a turn, too"
        assert hedges(live) == {"won": 4, "lost": 0}
        await asyncio.sleep(0.2)
        assert a.num_open == 0, "what a did for nobody was stopped"

    with_two(tmp_path, work)


def test_the_first_one_may_still_win(tmp_path: Path) -> None:
    async def work(live: Live, a: FakeEngine, b: FakeEngine) -> None:
        a.behave(first_s=0.3)
        b.behave("freeze")
        status, text, _ = await ask(live)
        assert (status, "w0" in text) == (200, True)
        assert (a.num_asked, b.num_asked) == (1, 1)
        assert hedges(live) == {"won": 0, "lost": 1}

    with_two(tmp_path, work)


def test_one_that_answers_in_time_is_asked_alone(tmp_path: Path) -> None:
    async def work(live: Live, a: FakeEngine, b: FakeEngine) -> None:
        for num in range(4):
            assert (await ask(live, num))[0] == 200
        assert (a.num_asked, b.num_asked) == (2, 2)
        assert hedges(live) == {"won": 0, "lost": 0}

    with_two(tmp_path, work, hedge_s=5)


def test_without_it_the_first_one_is_waited_for(tmp_path: Path) -> None:
    async def work(live: Live, a: FakeEngine, b: FakeEngine) -> None:
        a.behave(first_s=0.4)
        _, _, took = await ask(live)
        assert took > 0.4
        assert b.num_asked == 0

    with_two(tmp_path, work, hedge_s=None)


def test_where_both_fail_the_client_is_told_why(tmp_path: Path) -> None:
    async def work(live: Live, a: FakeEngine, b: FakeEngine) -> None:
        a.behave("freeze")
        b.behave("freeze")
        status, text, took = await ask(live, stream=True)
        assert (status, "engine_stalled" in text) == (504, True)
        assert took < 3

    with_two(tmp_path, work, first_token_s=0.5)


def test_a_client_that_goes_away_stops_both(tmp_path: Path) -> None:
    async def work(live: Live, a: FakeEngine, b: FakeEngine) -> None:
        a.behave("freeze")
        b.behave("freeze")
        asking = asyncio.create_task(ask(live))
        await asyncio.sleep(0.4)
        assert (a.num_open, b.num_open) == (1, 1)
        asking.cancel()
        await asyncio.sleep(0.4)
        assert (a.num_open, b.num_open) == (0, 0)

    with_two(tmp_path, work)


def test_usage_and_trace_are_the_winner_s(tmp_path: Path) -> None:
    async def work(live: Live, a: FakeEngine, b: FakeEngine) -> None:
        a.behave("freeze")
        answer = await live.http.post(
            "/v1/chat/completions",
            json={"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "Hi"}]},
        )
        name = answer.headers["x-request-id"]
        trace = live.worker.app.parts.stores.books.find("default", name)
        assert trace is not None
        told = {field: trace.body[field] for field in ("engine", "attempts", "finish")}
        assert told == {"engine": "b", "attempts": 2, "finish": "stop"}
        assert trace.body["completion_tokens"] == 50

    with_two(tmp_path, work)
