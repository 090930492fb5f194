"""The Responses API: what engines are asked; what is told, in the official models' strict form."""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from tests.gateway.scripted import CUT, MODEL, Live, chunk, says, with_gateway

from dialoop.gateway.guard import Blocked

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEMS: TypeAdapter[Any] = TypeAdapter(list[ResponseItem])
LOOK: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}


def text_of(response: Any) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


async def ask(live: Live, status: int = 200, **body: Any) -> Any:
    """A whole response, or the error."""
    answer = await live.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"} | body)
    found = answer.json()
    assert answer.status_code == status, found
    if status == 200:
        Response.model_validate(found, strict=True)
    return found


async def stream(live: Live, **body: Any) -> list[Any]:
    """The events of a response; all that all of them must keep is checked."""
    body = {"model": MODEL, "input": "Hi", "stream": True} | body
    answer = await live.http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    *blocks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events: list[Any] = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event, strict=True)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events: list[Any]) -> list[str]:
    """Types of events without `response.`, those that repeat told once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return names[:1] + [new for old, new in pairwise(names) if old != new]


def test_a_response_is_the_chat_s_answer(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        found = await ask(live, instructions="Be short", metadata={"a": "b"})
        assert text_of(found) == "Hello there"
        assert (found["status"], found["truncation"]) == ("completed", "auto")
        assert (found["instructions"], found["metadata"]) == ("Be short", {"a": "b"})
        assert found["usage"]["input_tokens_details"]["cached_tokens"] == 2
        assert (found["usage"]["output_tokens"], found["usage"]["total_tokens"]) == (5, 12)
        assert live.engine.asked == [
            {
                "model": MODEL,
                "messages": [
                    {"role": "system", "content": "Be short"},
                    {"role": "user", "content": "Hi"},
                ],
            }
        ]

    with_gateway(tmp_path, work)


def test_a_stream_builds_the_response_up(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        events = await stream(live)
        assert kinds(events) == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        deltas = [event["delta"] for event in events if "delta" in event]
        assert ("".join(deltas), len(deltas)) == ("Hello there", 4)
        last = events[-1]["response"]
        assert (text_of(last), last["status"]) == ("Hello there", "completed")
        assert last["usage"]["total_tokens"] == 12
        assert events[0]["response"]["status"] == "in_progress"
        assert events[0]["response"]["output"] == []
        found = (await live.http.get(f"/v1/responses/{last['id']}")).json()
        assert found == last

    with_gateway(tmp_path, work)


def test_thought_text_refusal_and_calls_are_items_of_their_own(tmp_path: Path) -> None:
    def call(index: int, **function: Any) -> dict[str, Any]:
        named = {"id": f"call_{index}"} if "name" in function else {}
        return {"index": index, "type": "function", "function": function} | named

    async def work(live: Live) -> None:
        live.engine.script = [
            chunk(reasoning_content="hm"),
            chunk(content="See"),
            chunk(refusal="No"),
            chunk(tool_calls=[call(0, name="look", arguments="")]),
            chunk(tool_calls=[call(0, arguments="{"), call(1, name="look", arguments="[")]),
            chunk(tool_calls=[call(1, arguments="]"), call(0, arguments="}")]),
            chunk("tool_calls"),
        ]
        events = await stream(live, tools=[LOOK], tool_choice="required")
        assert kinds(events)[2:] == [
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "content_part.added",
            "refusal.delta",
            "refusal.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
        output = events[-1]["response"]["output"]
        done = [event["item"] for event in events if event["type"].endswith("output_item.done")]
        assert output == done
        assert [item["type"] for item in output] == ["reasoning", "message"] + ["function_call"] * 2
        assert [item["arguments"] for item in output[2:]] == ["{}", "[]"]
        assert output[2]["call_id"] == "call_0"
        whole = await ask(live, tools=[LOOK], tool_choice={"type": "function", "name": "look"})
        assert [item["type"] for item in whole["output"]] == [item["type"] for item in output]
        assert live.engine.asked[-1]["tool_choice"] == {
            "type": "function",
            "function": {"name": "look"},
        }
        given = {"name": "look", "parameters": {"type": "object"}, "strict": True}
        assert live.engine.asked[-1]["tools"] == [{"type": "function", "function": given}]

    with_gateway(tmp_path, work)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
def test_an_answer_that_was_not_finished_is_incomplete(
    tmp_path: Path, finish: str, reason: str
) -> None:
    async def work(live: Live) -> None:
        live.engine.script = says("Hello", finish)
        events = await stream(live, max_output_tokens=16)
        assert live.engine.asked[-1]["max_completion_tokens"] == 16
        assert events[-1]["type"] == "response.incomplete"
        for found in (events[-1]["response"], await ask(live)):
            assert found["status"] == found["output"][0]["status"] == "incomplete"
            assert found["incomplete_details"] == {"reason": reason}

    with_gateway(tmp_path, work)


def test_a_cut_answer_fails_and_pretends_nothing(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        live.engine.script = [*says("Hello there")[:2], CUT]
        events = await stream(live)
        assert kinds(events)[-2:] == ["output_text.delta", "failed"]
        found = events[-1]["response"]
        assert (found["status"], found["completed_at"]) == ("failed", None)
        assert found["error"]["code"] == "server_error"
        assert "the answer was cut" in found["error"]["message"]
        assert (text_of(found), found["output"][0]["status"]) == ("Hello ", "incomplete")
        kept = (await live.http.get(f"/v1/responses/{found['id']}")).json()
        assert kept["status"] == "failed"
        live.engine.status = 500
        assert (await ask(live, 502))["error"]["code"] == "engine_failed"

    with_gateway(tmp_path, work)


def test_a_response_goes_on_from_another(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        first = await ask(live, instructions="Be short")
        second = (await stream(live, input="More", previous_response_id=first["id"]))[-1]
        result = {"type": "function_call_output", "call_id": "c", "output": "4"}
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        third = await ask(live, previous_response_id=second["response"]["id"], input=[call, result])
        assert third["previous_response_id"] == second["response"]["id"]
        answer = {"role": "assistant", "content": "Hello there"}
        called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        assert live.engine.asked[-1]["messages"] == [
            {"role": "user", "content": "Hi"},
            answer,
            {"role": "user", "content": "More"},
            answer,
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "c", "content": "4"},
        ]
        listed = (await live.http.get(f"/v1/responses/{third['id']}/input_items?order=asc")).json()
        ITEMS.validate_python(listed["data"], strict=True)
        assert [item["type"] for item in listed["data"]] == ["function_call", result["type"]]
        path = f"/v1/responses/{third['id']}/input_items?limit=1"
        newest = (await live.http.get(path)).json()
        assert (newest["data"][0]["type"], newest["has_more"]) == (result["type"], True)
        rest = (await live.http.get(f"{path}&after={newest['last_id']}")).json()
        assert (rest["data"][0]["type"], rest["has_more"]) == ("function_call", False)
        assert (await live.http.delete(f"/v1/responses/{first['id']}")).json()["deleted"]
        error = await ask(live, 400, previous_response_id=third["id"])
        assert error["error"]["code"] == "previous_response_not_found"

    with_gateway(tmp_path, work)


def test_a_response_adds_to_a_conversation(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        first = await ask(live, conversation={"id": place})
        assert first["conversation"] == {"id": place}
        await stream(live, conversation=place, input="More", instructions="Be short")
        sent = [(one["role"], one["content"]) for one in live.engine.asked[-1]["messages"]]
        turn = [("user", "Hi"), ("assistant", "Hello there")]
        assert sent == [("system", "Be short"), *turn, ("user", "More")]
        path = f"/v1/conversations/{place}/items?order=asc"
        items = (await live.http.get(path)).json()["data"]
        assert len(items) == 4
        assert items[1] == first["output"][0]

    with_gateway(tmp_path, work)


def test_what_is_asked_of_the_engine(tmp_path: Path) -> None:
    picture = {"type": "input_image", "image_url": "data:,x"}
    schema = {"type": "object", "properties": {}}

    async def work(live: Live) -> None:
        await ask(
            live,
            input=[
                {"role": "developer", "content": "Be kind"},
                {"role": "user", "content": [{"type": "input_text", "text": "See"}, picture]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"role": "assistant", "content": "Ah", "phase": "commentary"},
            ],
            text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
            reasoning={"effort": "low"},
            temperature=0.5,
            tools=[LOOK, LOOK | {"name": "other"}],
            tool_choice={
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "other"}],
            },
            include=["message.output_text.logprobs"],
            top_logprobs=2,
            store=False,
        )
        body = live.engine.asked[-1]
        assert [tool["function"]["name"] for tool in body.pop("tools")] == ["other"]
        assert body.pop("messages") == [
            {"role": "system", "content": "Be kind"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {"type": "image_url", "image_url": {"url": "data:,x"}},
                ],
            },
            {"role": "assistant", "content": "Ah"},
        ]
        form = {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema} | {"strict": False},
        }
        assert body == {
            "model": MODEL,
            "tool_choice": "auto",
            "response_format": form,
            "reasoning_effort": "low",
            "temperature": 0.5,
            "logprobs": True,
            "top_logprobs": 2,
        }

    with_gateway(tmp_path, work)


def test_log_probabilities_are_told_where_they_are_wanted(tmp_path: Path) -> None:
    one = {"token": "Hi", "logprob": -0.5, "bytes": None}
    told = chunk(content="Hi")
    told["choices"][0]["logprobs"] = {"content": [one | {"top_logprobs": [one]}]}
    wanted = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}

    async def work(live: Live) -> None:
        live.engine.script = [told, chunk("stop")]
        include = ["message.output_text.logprobs"]
        for found in (
            await ask(live, include=include),
            (await stream(live, include=include))[-1]["response"],
        ):
            part = found["output"][0]["content"][0]
            assert part["logprobs"] == [wanted | {"top_logprobs": [wanted]}]

    with_gateway(tmp_path, work)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"background": True}, "background: responses are made while the client waits"),
    ({"prompt": {"id": "x"}}, "prompt: prompts are not stored here"),
    ({"colour": 1}, "colour: unknown parameter"),
    ({"input": []}, "input: a text or a list"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type: items are message"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input: a message is required"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "there are no files here",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type: only functions are called here"),
    ({"tools": [LOOK | {"parameters": 3}]}, "tools[0].parameters: an object is required"),
    ({"tool_choice": "required"}, "`required` needs `tools`"),
    ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "x"}}, "no tool 'x'"),
    ({"include": ["x"]}, "include: 'x' is not known"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type: text, json_object"),
    ({"truncation": "x"}, "truncation: one of auto, disabled"),
    ({"temperature": 3}, "temperature: a number from 0 to 2"),
    ({"conversation": "c", "previous_response_id": "r"}, "not together with"),
    ({"stream_options": {"include_obfuscation": True}, "stream": True}, "not disguised"),
    ({"metadata": {"a": 1}}, "metadata.a: a text"),
    ({"instructions": 1}, "instructions: a text is required"),
    ({"model": None}, "model: the name of a model"),
    ({"stream": "yes"}, "stream: true or false"),
]


def test_what_is_not_served_is_refused_by_name(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        for body, message in WRONG:
            error = (await ask(live, 400, **body))["error"]
            assert message in error["message"]
            assert error["param"]
        assert not live.engine.asked
        missing = await live.http.get("/v1/responses/resp_no")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "response_not_found")
        assert (await live.http.delete("/v1/responses/resp_no")).status_code == 404
        assert (await live.http.get("/v1/responses/resp_no/input_items")).status_code == 404
        unkept = await ask(live, store=False)
        path = f"/v1/responses/{unkept['id']}"
        assert (await live.http.get(path)).status_code == 404
        path = f"/v1/responses/{(await ask(live))['id']}"
        assert "background" in (await live.http.post(path + "/cancel")).json()["error"]["message"]
        assert (await live.http.get(path + "?stream=true")).status_code == 400

    with_gateway(tmp_path, work)


def test_truncation_decides_about_long_dialogues(tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y" * 400}]
    long = [*turn * 5, {"role": "user", "content": "Hi"}]

    async def work(live: Live) -> None:
        error = (await ask(live, 400, input=long, truncation="disabled"))["error"]
        assert error["code"] == "context_length_exceeded"
        found = await ask(live, input=long, truncation="auto")
        assert found["truncation"] == "auto"
        sent = live.engine.asked[-1]["messages"]
        assert sent[-1] == {"role": "user", "content": "Hi"}
        assert len(sent) < len(long)

    models = {MODEL: {"versions": [{"model": MODEL}], "context": {"window_tokens": 600}}}
    with_gateway(tmp_path, work, models=models)


def test_a_cached_answer_is_told_as_a_response(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        first = await ask(live, temperature=0)
        events = await stream(live, temperature=0, conversation=place)
        assert len(live.engine.asked) == 1
        assert events[-1]["type"] == "response.completed"
        assert text_of(events[-1]["response"]) == text_of(first)
        assert events[-1]["response"]["id"] != first["id"]
        path = f"/v1/conversations/{place}/items"
        assert len((await live.http.get(path)).json()["data"]) == 2

    with_gateway(tmp_path, work, cache={"scope": "tenant"})


class Stop:
    """A stream of text that ends at one word."""

    def feed(self, text: str) -> str:
        """Let text pass up to the word."""
        if "there" in text or "re" in text:
            raise Blocked("a word")
        return text

    def finish(self) -> str:
        """Nothing is held back."""
        return ""


class StopGuard:
    """Blocks in answers only."""

    policy = "stop-1"

    def check(self, texts: Iterable[str]) -> None:
        """Let all pass."""

    def open(self, channel: str) -> Stop:
        """A stream of one choice."""
        return Stop()


def test_a_filtered_answer_is_told_and_kept_as_far_as_it_passed(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        place = (await live.client.conversations.create()).id
        events = await stream(live, conversation=place)
        assert events[-1]["type"] == "response.incomplete"
        for found in (events[-1]["response"], await ask(live)):
            assert found["incomplete_details"] == {"reason": "content_filter"}
            assert "re" not in text_of(found)
        path = f"/v1/conversations/{place}/items"
        last = (await live.http.get(path)).json()["data"][0]
        assert (last["status"], last["content"][0]["text"]) == ("incomplete", "Hello the")

    with_gateway(tmp_path, work, guard="tests.gateway.test_responses:StopGuard")


class Order(BaseModel):
    """What the official client parses an answer into."""

    paid: bool


def test_the_official_client_gathers_and_parses_streams(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        live.engine.script = says('{"paid": true}')
        asked: Any = {"model": MODEL, "input": "Hi", "text_format": Order}
        async with live.client.responses.stream(**asked) as events:
            names = [event.type async for event in events]
            found = await events.get_final_response()
        assert names[-1] == "response.completed"
        assert found.output_parsed == Order(paid=True)
        assert found.output_text == '{"paid": true}'
        form = live.engine.asked[-1]["response_format"]["json_schema"]
        assert (form["name"], form["strict"]) == ("Order", True)
        parsed = await live.client.responses.parse(**asked)
        assert parsed.output_parsed == Order(paid=True)
        call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"k": 1}'}}
        live.engine.script = [chunk(tool_calls=[call]), chunk("tool_calls")]
        tools: Any = [LOOK]
        async with live.client.responses.stream(model=MODEL, input="Hi", tools=tools) as events:
            snapshots = [
                event.snapshot
                async for event in events
                if event.type == "response.function_call_arguments.delta"
            ]
            final: Any = (await events.get_final_response()).output[0]
        assert snapshots == ['{"k": 1}']
        assert (final.call_id, final.name, final.arguments) == ("c", "look", '{"k": 1}')

    with_gateway(tmp_path, work)
