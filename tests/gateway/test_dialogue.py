"""Chats in stored conversations: what goes in front, what is kept, what a lost database costs."""

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.gateway.scripted import CUT, MODEL, Live, chunk, says, with_gateway

from dialoop.core.errors import UpstreamError
from dialoop.gateway.history import MAX_WAITING, History, Write

HELLO: Any = [{"role": "user", "content": "Hi"}]


async def talk(live: Live, place: str, *, stream: bool = False, **more: Any) -> Any:
    body: Any = {"model": MODEL, "messages": HELLO, "stream": stream} | more
    return await live.client.chat.completions.create(**body, extra_body={"conversation": place})


async def kept(live: Live, place: str) -> list[tuple[str, str, str]]:
    """Kind or role, status and text of what a conversation holds."""
    found = (await live.http.get(f"/v1/conversations/{place}/items?order=asc&limit=100")).json()
    return [
        (
            item.get("role", item["type"]),
            item.get("status", ""),
            "".join(part.get("text", "") for part in item.get("content") or ()),
        )
        for item in found["data"]
    ]


def test_what_was_said_goes_before_what_is_said(tmp_path: Path, url: str) -> None:
    async def work(live: Live) -> None:
        system: Any = {"type": "message", "role": "system", "content": "Be short"}
        place = (await live.client.conversations.create(items=[system])).id
        await talk(live, place)
        chunks = [one async for one in await talk(live, place, stream=True)]
        assert chunks[-1].choices[0].finish_reason == "stop"
        more: Any = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Bye"}]
        await talk(live, place, messages=more)
        sent = [(one["role"], one["content"]) for one in live.engine.asked[-1]["messages"]]
        turn = [("user", "Hi"), ("assistant", "Hello there")]
        first = [("system", "Be short"), ("system", "Be kind")]
        assert sent == [*first, *turn, *turn, ("user", "Bye")]
        assert "conversation" not in live.engine.asked[-1]
        done = [("user", "completed", "Hi"), ("assistant", "completed", "Hello there")]
        last = [("user", "completed", "Bye"), done[1]]
        assert await kept(live, place) == [("system", "completed", "Be short"), *done, *done, *last]

    with_gateway(tmp_path, work, database=url)


def test_calls_images_and_results_come_back_as_they_were_said(tmp_path: Path) -> None:
    function = {"name": "look", "arguments": '{"k": 1}'}
    call = {"id": "call_1", "type": "function", "function": function}

    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        live.engine.script = [
            chunk(content="Let me see", reasoning_content="hm"),
            chunk(tool_calls=[{"index": 0} | call]),
            chunk("tool_calls"),
        ]
        picture = {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}
        parts: Any = [{"type": "text", "text": "What is it?"}, picture]
        await talk(live, place, messages=[{"role": "user", "content": parts}])
        result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "a lamp"}
        await talk(live, place, messages=[result], stream=False)
        assert live.engine.asked[-1]["messages"] == [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "Let me see", "tool_calls": [call]},
            result,
        ]
        kinds = [item[0] for item in await kept(live, place)]
        assert kinds[:5] == [
            "user",
            "reasoning",
            "assistant",
            "function_call",
            "function_call_output",
        ]

    with_gateway(tmp_path, work)


def test_of_a_cut_answer_what_was_delivered_is_kept(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        live.engine.script = [*says("Hello there")[:2], CUT]
        events = await talk(live, place, stream=True)
        assert (await anext(events)).choices[0].delta.content == "Hel"
        assert (await anext(events)).choices[0].delta.content == "lo "
        with pytest.raises(openai.APIError, match="the answer was cut"):
            await anext(events)
        assert await kept(live, place) == [
            ("user", "completed", "Hi"),
            ("assistant", "incomplete", "Hello "),
        ]
        found = (await live.http.get(f"/v1/conversations/{place}/items")).json()["data"][0]
        assert found["incomplete_details"] == {"reason": "engine_failed"}
        live.engine.script = says("OK", "length")
        await talk(live, place)
        sent = [(one["role"], one["content"]) for one in live.engine.asked[-1]["messages"]]
        assert sent == [("user", "Hi"), ("assistant", "Hello "), ("user", "Hi")]
        assert (await kept(live, place))[-1] == ("assistant", "incomplete", "OK")

    with_gateway(tmp_path, work)


def test_of_an_answer_whose_client_went_away_only_the_written_part_is_kept(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        goes_on = asyncio.Event()
        live.engine.script = [chunk(content="Hel"), goes_on.wait, *says("lo there")]
        stream = await talk(live, place, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await until(lambda: live.worker.app.num_open == 0)
        goes_on.set()
        await until(lambda: live.history.num_waiting == 0)
        assert await kept(live, place) == [
            ("user", "completed", "Hi"),
            ("assistant", "incomplete", "Hel"),
        ]

    with_gateway(tmp_path, work)


def test_a_message_that_nothing_answered_is_kept_and_not_sent_again(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        live.engine.status = 500
        with pytest.raises(openai.InternalServerError):
            await talk(live, place)
        await until(lambda: live.history.num_waiting == 0)
        assert await kept(live, place) == [("user", "incomplete", "Hi")]
        live.engine.status = 422
        with pytest.raises(openai.UnprocessableEntityError):
            await talk(live, place)
        live.engine.status = 200
        await talk(live, place)
        assert len(live.engine.asked[-1]["messages"]) == 1
        assert [item[1] for item in await kept(live, place)] == [
            "incomplete",
            "completed",
            "completed",
        ]

    with_gateway(tmp_path, work, breaker={"num_failures": 100})


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        with pytest.raises(openai.NotFoundError, match="Conversation with id 'conv_no' not found"):
            await talk(live, "conv_no")
        with pytest.raises(openai.BadRequestError, match="n: one answer only"):
            await talk(live, place, n=2)
        sound: Any = [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]
        with pytest.raises(openai.BadRequestError, match="`input_audio` cannot be kept"):
            await talk(live, place, messages=[{"role": "user", "content": sound}])
        with pytest.raises(openai.BadRequestError, match="conversation: the id of a conversation"):
            await talk(live, {"id": 3})  # pyright: ignore[reportArgumentType]
        with pytest.raises(openai.BadRequestError, match="pins: the window of this model"):
            await live.client.chat.completions.create(
                model=MODEL, messages=HELLO, extra_body={"pins": ["x"]}
            )
        assert not live.engine.asked

    with_gateway(tmp_path, work)


def test_pins_are_sent_where_the_window_is_known(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        path = f"/v1/conversations/{place}/pins"
        answer = await live.http.put(path, json={"pins": ["The user is called Li"]})
        assert answer.json() == {"object": "conversation.pins", "pins": ["The user is called Li"]}
        assert (await live.http.get(path)).json() == answer.json()
        raw = await live.client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, extra_body={"conversation": place}
        )
        assert "kept=1" in raw.headers["x-dialoop-context"]
        assert "The user is called Li" in live.engine.asked[-1]["messages"][0]["content"]
        refused = await live.http.put(path, json={"pins": ["x" * 2001]})
        assert refused.status_code == 400

    models = {MODEL: {"versions": [{"model": MODEL}], "context": {"window_tokens": 2000}}}
    with_gateway(tmp_path, work, models=models)


def test_only_dialogues_that_may_not_fit_are_measured(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        async def told(content: Any, **more: Any) -> str | None:
            message: Any = {"role": "user", "content": content}
            raw = await live.client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[message], extra_body=more
            )
            return raw.headers.get("x-dialoop-context")

        assert await told("Hi") is None
        assert await told("Hi", max_tokens=1500) is not None
        assert await told("x" * 1000) is not None
        assert await told("\u4f60" * 350) is not None
        assert await told([{"type": "text", "text": "Hi"}]) is not None

    models = {MODEL: {"versions": [{"model": MODEL}], "context": {"window_tokens": 2000}}}
    with_gateway(tmp_path, work, models=models)


@pytest.mark.parametrize("stream", [False, True])
def test_a_frozen_database_costs_its_time_out_and_loses_nothing(
    tmp_path: Path, *, stream: bool
) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        database = live.worker.app.parts.database
        async with database._writer:  # a writer that does not end
            began = time.monotonic()
            raw = await live.client.chat.completions.with_raw_response.create(
                model=MODEL, messages=HELLO, stream=stream, extra_body={"conversation": place}
            )
            found: Any = raw.parse()
            if stream:
                async for _ in found:
                    pass
            assert time.monotonic() - began < 1
            assert live.history.num_waiting == 1
            if not stream:
                assert raw.headers["x-dialoop-history"] == "late"
            # what waits is read from memory
            await asyncio.wait_for(talk(live, place), 3)
            assert len(live.engine.asked[-1]["messages"]) == 3
        await until(lambda: live.history.num_waiting == 0)
        assert len(await kept(live, place)) == 4

    with_gateway(tmp_path, work, database_s=0.3)


def test_a_database_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        breaker = live.worker.app.parts.database._breaker
        for _ in range(3):
            breaker.timed_out()
        raw = await live.client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, extra_body={"conversation": place}
        )
        assert raw.headers.get_list("x-dialoop-history") == ["lost"]
        assert raw.parse().choices[0].message.content == "Hello there"
        await until(lambda: live.history.num_waiting == 0)
        assert [item[0] for item in await kept(live, place)] == ["user", "assistant"]

    with_gateway(tmp_path, work)


def test_a_database_that_answers_nothing_costs_one_time_out(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        engine = live.worker.app.parts.database._engine
        pool: Any = engine.sync_engine.pool
        held = [await engine.connect() for _ in range(pool.size() + pool._max_overflow)]
        began = time.monotonic()
        raw = await live.client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, extra_body={"conversation": place}
        )
        assert 0.5 <= time.monotonic() - began < 0.9
        assert raw.headers.get_list("x-dialoop-history") == ["lost"]
        for connection in held:
            await connection.close()
        await until(lambda: live.history.num_waiting == 0)
        assert [item[0] for item in await kept(live, place)] == ["user", "assistant"]

    with_gateway(tmp_path, work, database_s=0.5)


def test_all_that_is_kept_of_one_answer_costs_one_time_out(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        async with live.worker.app.parts.database._writer:
            began = time.monotonic()
            made = await live.client.responses.create(model=MODEL, input="Hi", conversation=place)
            assert 0.5 <= time.monotonic() - began < 1
            page = (await live.http.get("/metrics")).text
            assert "dialoop_gateway_history_waiting 2.0" in page
        await until(lambda: live.history.num_waiting == 0)
        assert (await live.client.responses.retrieve(made.id)).output_text == "Hello there"
        assert len(await kept(live, place)) == 2

    with_gateway(tmp_path, work, database_s=0.5)


def test_what_is_being_written_when_the_client_goes_away_is_kept(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        async with live.worker.app.parts.database._writer:
            stream = await talk(live, place, stream=True)
            async for one in stream:
                if one.choices[0].finish_reason:
                    break
            await stream.close()
            await until(lambda: live.worker.app.num_open == 0)
            assert live.history.num_waiting == 1
        await until(lambda: live.history.num_waiting == 0)
        assert await kept(live, place) == [
            ("user", "completed", "Hi"),
            ("assistant", "completed", "Hello there"),
        ]

    with_gateway(tmp_path, work, database_s=5.0)


def test_writes_are_tried_in_order_within_bounds() -> None:
    done: list[int] = []
    fails = [3]

    def write(number: int) -> Write:
        async def work() -> None:
            if fails[0]:
                fails[0] -= 1
                raise UpstreamError("away")
            done.append(number)

        return Write(work, ("t", "c"), [{"id": f"msg_{number}"}])

    async def main() -> None:
        history = History(None)  # type: ignore[arg-type]  # nothing is read
        assert not await history.write(write(0))
        assert not await history.write(write(1))  # behind the first
        await until(lambda: history.num_waiting == 0)
        assert done == [0, 1]
        assert await history.write(write(2))
        fails[0] = 10**6
        for number in range(MAX_WAITING + 5):
            history.later(write(number))
        assert (history.num_waiting, history.num_lost) == (MAX_WAITING, 5)
        await history.close()
        assert history.num_lost == MAX_WAITING + 5

    asyncio.run(main())


async def until(is_so: Any) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.01)
