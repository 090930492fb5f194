"""What chaos tests and benchmarks are made of, a fake engine and load, tells things apart."""

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest
from benchmarks.gateway import engine as fake
from benchmarks.gateway.load import Client, Numbers, Reply, Target, closed, opened
from benchmarks.gateway.results import result
from benchmarks.gateway.upkeep import quantile


@pytest.fixture(scope="module")
def engine() -> Iterator[fake.RunningEngine]:
    with fake.running() as started:
        yield started


async def ask(target: Target, timeout_s: float = 0.5) -> Reply:
    client = Client(target.address, timeout_s)
    reply = await client.ask(Numbers(target).next())
    client.close()
    return reply


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (None, "whole"),
        ("reset", "reset"),
        ("reset_after", "cut"),
        ("close_after", "cut"),
        ("cut_line", "cut"),
        ("no_done", "unended"),
        ("freeze", "timeout"),
        ("freeze_after", "timeout"),
        ("freeze_pinging", "timeout"),
        ("error_event", "error_event"),
        ("status", "status_500"),
    ],
)
def test_each_fault_of_a_stream_is_seen_as_what_it_is(
    engine: fake.RunningEngine, fault: fake.FaultKind | None, seen: str
) -> None:
    engine.behave(fault)
    target = Target(engine.url, stream=True)
    reply = asyncio.run(ask(target))
    assert reply.kind(target.text, stream=True) == seen
    if fault in {"reset_after", "close_after", "no_done"}:
        assert len(reply.events()) == 5


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_whole_only_with_all_its_words(
    engine: fake.RunningEngine, stream: bool
) -> None:
    engine.behave()
    target = Target(engine.url, stream=stream)
    reply = asyncio.run(ask(target))
    assert reply.kind(target.text, stream) == "whole"
    assert reply.kind(target.text + "w99 ", stream) == ("false_stop" if stream else "wrong")
    assert reply.kind("w1 ", stream) == "wrong"


def test_a_stream_has_fifty_two_chunks_and_usage_when_asked_for(
    engine: fake.RunningEngine,
) -> None:
    engine.behave()
    events = asyncio.run(ask(Target(engine.url, stream=True))).events()
    assert len(events) == 53
    assert events[-1] == b"[DONE]"
    wants = {"stream_options": {"include_usage": True}}
    events = asyncio.run(ask(Target(engine.url, stream=True, more=wants))).events()
    assert orjson.loads(events[-2])["usage"]["completion_tokens"] == 50


def test_nobody_listening_is_a_refusal() -> None:
    assert asyncio.run(ask(Target("http://127.0.0.1:9"))).kind("", stream=False) == "refused"


def test_a_fault_can_meet_some_requests_only(engine: fake.RunningEngine) -> None:
    engine.behave(fake.Fault("status", times=2))
    report = asyncio.run(closed(Target(engine.url), 1, 5, warm_s=0, most=5))
    assert report.kinds == {"status_500": 2, "whole": 3}


@pytest.mark.parametrize(
    ("stream", "behaviour", "phase"),
    [
        (True, {"first_s": 5}, "before_first"),
        (True, {"chunk_s": 0.1}, "mid_stream"),
        (False, {"first_s": 5}, "json"),
    ],
)
def test_an_engine_sees_when_and_where_a_client_leaves(
    engine: fake.RunningEngine, stream: bool, behaviour: dict[str, float], phase: str
) -> None:
    engine.behave(None, **behaviour)
    before = time.monotonic()
    asyncio.run(ask(Target(engine.url, stream=stream), timeout_s=0.3))
    report = engine.report()
    (abort,) = report["aborts"]
    assert abort["phase"] == phase
    assert before + 0.3 < abort["at"] < time.monotonic()
    assert report["open"] == 0


def test_an_open_loop_counts_from_the_arrival_that_was_meant(engine: fake.RunningEngine) -> None:
    engine.behave(first_s=0.1)
    report = asyncio.run(opened(Target(engine.url), 40, 1, warm_s=0))
    assert 20 < report.kinds["whole"] < 70
    assert 100 < report.p50_ms <= report.p99_ms
    report = asyncio.run(opened(Target(engine.url), 100, 0.5, warm_s=0, most_open=2))
    assert report.kinds["overrun"] > 10


def test_the_prefix_cache_finds_what_it_holds_and_forgets_the_oldest() -> None:
    cache = fake.PrefixCache(60)
    first = [{"role": "user", "content": "a" * 75}]  # 20 tokens with its role
    assert cache.visit(first, "b" * 70) == (20, 0)
    longer = [*first, {"role": "assistant", "content": "b" * 70}, {"role": "user", "content": "c"}]
    assert cache.visit(longer, "d") == (41, 40)
    assert cache.visit([{"role": "user", "content": "e" * 75}], "f") == (20, 0)
    assert cache.visit(longer, "d")[1] == 20, "the answer went before the question it follows"


HISTOGRAM = """
lag_bucket{le="0.01",worker="0"} 10.0
lag_bucket{le="0.1",worker="0"} %d
lag_bucket{le="+Inf",worker="0"} %d
"""


def test_a_quantile_is_of_what_was_counted_between_two_readings() -> None:
    before, after = HISTOGRAM % (20, 20), HISTOGRAM % (119, 120)
    assert quantile(before, after, "lag", 0.99) == 0.1
    assert quantile(before, after, "lag", 1) == math.inf
    assert quantile("", after, "lag", 0.05) == 0.01


def test_a_bar_is_met_or_missed() -> None:
    found = result("x", "dialoop", 2.0, "ms", "", "<= 2")
    assert found.is_met
    assert replace(found, bar=">= 3").is_met is False
    assert replace(found, value=math.nan).is_met is False
    assert replace(found, bar="").is_met is None
