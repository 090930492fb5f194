"""A kept answer given back: the stream says what the document says."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from dialoop.gateway.cache.replay import DONE, events, whole

Json = dict[str, Any]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LOGPROBS = {"content": [{"token": "hi", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGE = {"role": "assistant", "content": 'hi \u4f60\n"', "refusal": None}


def chat(message: Json, finish: str = "stop", logprobs: Json | None = None) -> bytes:
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}
    head = {"id": "old", "object": "chat.completion", "created": 1, "model": "m"}
    more = {"system_fingerprint": "fp"}
    return orjson.dumps(head | {"choices": [choice], "usage": USAGE} | more)


def read(stream: list[bytes]) -> list[Json]:
    assert stream[-1] == DONE
    assert all(one.startswith(b"data: ") and one.endswith(b"\n\n") for one in stream)
    assert all(one.count(b"\n") == 2 for one in stream), "one line, one event"
    return [orjson.loads(one[6:]) for one in stream[:-1]]


def test_the_document_has_an_id_of_its_own() -> None:
    value = chat(MESSAGE)
    found = orjson.loads(whole(value, "new", 7))
    assert (found["id"], found["created"]) == ("new", 7)
    assert found | {"id": "old", "created": 1} == orjson.loads(value)


@pytest.mark.parametrize("has_usage", [True, False])
@pytest.mark.parametrize(
    ("message", "finish", "logprobs"),
    [
        (MESSAGE, "stop", None),
        (MESSAGE, "length", LOGPROBS),
        (MESSAGE | {"reasoning_content": "hm"}, "stop", None),
        (MESSAGE | {"content": None, "tool_calls": [CALL, CALL]}, "tool_calls", None),
    ],
)
def test_a_chat_stream_says_the_same(
    message: Json, finish: str, logprobs: Json | None, has_usage: bool
) -> None:
    chunks = read(events(chat(message, finish, logprobs), "new", 7, has_usage=has_usage))
    said: Json = {}
    reasons, told = [], []
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert (chunk["id"], chunk["created"], chunk["model"]) == ("new", 7, "m")
        assert chunk["system_fingerprint"] == "fp"
        for choice in chunk["choices"]:
            said |= {name: one for name, one in choice["delta"].items() if one != ""}
            reasons.append(choice["finish_reason"])
            told += [choice["logprobs"]] if choice["logprobs"] else []
    for number, call in enumerate(said.get("tool_calls", [])):
        assert call.pop("index") == number
    assert said == {name: one for name, one in message.items() if one is not None}
    assert reasons == [None, None, finish]
    assert told == ([logprobs] if logprobs else [])
    usages = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    assert usages == ([None, None, None, USAGE] if has_usage else [])
    assert chunks[-1]["choices"] == [] if has_usage else chunks[-1]["choices"] != []


def test_a_text_stream_says_the_same() -> None:
    choice = {"index": 0, "text": "hello", "logprobs": None, "finish_reason": "length"}
    head = {"id": "old", "object": "text_completion", "created": 1, "model": "m"}
    value = orjson.dumps(head | {"choices": [choice], "usage": USAGE})
    chunks = read(events(value, "new", 7, has_usage=True))
    choices = [one for chunk in chunks for one in chunk["choices"]]
    assert "".join(one["text"] for one in choices) == "hello"
    assert [one["finish_reason"] for one in choices] == [None, "length"]
    assert chunks[-1]["usage"] == USAGE
