"""Whole completions out of the events of streams."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dialoop.gateway.gathered import Gathered

HEAD = {"id": "1", "object": "chat.completion.chunk", "created": 5, "model": "m"}


def chunk(number: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return HEAD | {"choices": [{"index": number, "delta": delta, "finish_reason": finish}]}


def gathered(*events: dict[str, Any]) -> Gathered:
    found = Gathered()
    for event in events:
        found.add(event)
    return found


CALLS = [("c1", "look", '{"at": "x"}'), ("c2", "go", "{}")]


@given(st.data())
def test_the_cuts_of_a_stream_do_not_matter(data: st.DataObject):
    text, thought = "Hello you", "hm, let me see"
    events: list[dict[str, Any]] = [chunk(role="assistant", content="")]
    for name, value in (("reasoning_content", thought), ("content", text)):
        cut = data.draw(st.integers(0, len(value)))
        events += [chunk(0, None, **{name: piece}) for piece in (value[:cut], value[cut:])]
    for place, (own, name, arguments) in enumerate(CALLS):
        cut = data.draw(st.integers(0, len(arguments)))
        function = {"name": name, "arguments": arguments[:cut]}
        first = {"index": place, "id": own, "type": "function", "function": function}
        rest = {"index": place, "function": {"arguments": arguments[cut:]}}
        events += [chunk(tool_calls=[piece]) for piece in (first, rest)]
    events += [chunk(finish="tool_calls"), HEAD | {"choices": [], "usage": {"prompt_tokens": 3}}]
    found = gathered(*events).completion()
    calls = [
        {"id": own, "type": "function", "function": {"name": name, "arguments": arguments}}
        for own, name, arguments in CALLS
    ]
    message = {"role": "assistant", "content": text, "reasoning_content": thought}
    choice = {"index": 0, "logprobs": None, "finish_reason": "tool_calls"}
    assert found == HEAD | {
        "object": "chat.completion",
        "choices": [choice | {"message": message | {"tool_calls": calls}}],
        "usage": {"prompt_tokens": 3},
    }


def test_what_was_cut_says_no_reason():
    found = gathered(chunk(content="Hel"))
    assert found.completion()["choices"][0]["finish_reason"] is None
    assert found.message() == {"role": "assistant", "content": "Hel"}


def test_choices_are_kept_apart():
    found = gathered(
        chunk(1, content="b"), chunk(0, content="a"), chunk(1, "stop"), chunk(0, "length")
    )
    choices = found.completion()["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
        (0, "a", "length"),
        (1, "b", "stop"),
    ]


def test_text_completions_and_their_log_probabilities():
    events = [
        {"object": "text_completion", "choices": [{"index": 0, "text": text, "logprobs": probs}]}
        for text, probs in (("He", {"tokens": ["He"]}), ("llo", {"tokens": ["llo"]}), ("", None))
    ]
    found = gathered(*events).completion()
    assert found["object"] == "text_completion"
    (choice,) = found["choices"]
    assert (choice["text"], choice["logprobs"]) == ("Hello", {"tokens": ["He", "llo"]})


def test_old_calls_of_functions():
    found = gathered(
        chunk(function_call={"name": "look", "arguments": "{"}),
        chunk(function_call={"arguments": "}"}),
    )
    assert found.message()["function_call"] == {"name": "look", "arguments": "{}"}


def test_an_absurd_index_of_a_call_costs_nothing():
    call = {"index": 10**9, "id": "c", "function": {"name": "look", "arguments": "{}"}}
    found = gathered(chunk(tool_calls=[call]))
    assert len(found.message()["tool_calls"]) == 1


def test_nothing_was_delivered():
    found = gathered(HEAD | {"choices": []})
    assert found.is_empty
    assert found.message() == {}
