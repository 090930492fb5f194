"""Items and the chat messages they stand for, both ways."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from dialoop.gateway import items
from dialoop.serve.failure import ApiError

STRICT: TypeAdapter[Any] = TypeAdapter(list[ResponseItem])

texts = st.text(min_size=1, max_size=8)
images = st.sampled_from([{"url": "data:,x"}, {"url": "https://a/b", "detail": "low"}])
parts = st.lists(
    texts.map(lambda text: {"type": "text", "text": text})
    | images.map(lambda image: {"type": "image_url", "image_url": image}),
    min_size=2,
    max_size=3,
)
calls = st.lists(
    st.tuples(texts, texts, texts).map(
        lambda it: {
            "id": it[0],
            "type": "function",
            "function": {"name": it[1], "arguments": it[2]},
        }
    ),
    min_size=1,
    max_size=3,
)
asked = (texts | parts).map(lambda content: {"role": "user", "content": content})
answered = texts.map(lambda text: {"role": "assistant", "content": text})
called = st.tuples(texts | st.none(), calls).map(
    lambda it: {"role": "assistant", "content": it[0], "tool_calls": it[1]}
)
returned = st.tuples(texts, texts).map(
    lambda it: {"role": "tool", "tool_call_id": it[0], "content": it[1]}
)
turns = st.tuples(asked, called, returned, answered).map(list) | st.tuples(asked, answered).map(
    list
)


@given(st.lists(turns, min_size=1, max_size=3))
def test_messages_come_back_as_they_were(dialogue: list[list[Any]]) -> None:
    messages = [message for turn in dialogue for message in turn]
    kept = items.from_messages(messages)
    STRICT.validate_python(kept, strict=True)
    assert len({item["id"] for item in kept}) == len(kept)
    assert items.to_messages(kept) == messages


def test_an_answer_is_items_that_the_official_models_know() -> None:
    function = {"name": "f", "arguments": "{}"}
    message: Any = {
        "role": "assistant",
        "content": "See",
        "refusal": "No",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    kept = items.from_answer(message)
    STRICT.validate_python(kept, strict=True)
    assert [item["type"] for item in kept] == ["reasoning", "message", "function_call"]
    assert [part["type"] for part in kept[1]["content"]] == ["output_text", "refusal"]
    silent = items.from_answer({"role": "assistant", "content": None})
    assert [item["type"] for item in silent] == ["message"]


def test_what_was_cut_is_sent_again_as_far_as_a_model_can_read_it() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": '{"a'}}
    hello = items.read("Hi", "input")
    message: Any = {"role": "assistant", "content": "Let me", "tool_calls": [call]}
    answer = items.cut(items.from_answer(message), "client_gone")
    assert answer[-1]["incomplete_details"] == {"reason": "client_gone"}
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Let me"}]
    assert items.to_messages([*hello, *answer]) == said
    assert items.to_messages(items.unanswered(hello, "engine_failed")) == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "function", "content": "x"}, "a message of role `function` cannot be kept"),
        ({"role": "tool", "content": "x"}, "tool_call_id: a text is required"),
        ({"role": "user", "content": [{"type": "file"}]}, "a part of type `file` cannot be kept"),
        ({"role": "user", "content": [{"type": "text"}]}, "a part of type `text` cannot be kept"),
    ],
)
def test_what_no_item_holds_is_refused(message: Any, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        items.from_messages([message])
    assert caught.value.param
    assert caught.value.param.startswith("messages[0]")
