"""Answers under a filter, in all cuts: the forbidden never shows, the clean is not touched."""

from __future__ import annotations

import copy
import json
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialoop.gateway.filtered import Filter
from dialoop.gateway.gathered import Gathered
from dialoop.gateway.guard import Blocked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dialoop.gateway.guard import Channel

WORD = "abcab!"


class Stream:
    """Holds back what may become the word; stops at it, or puts stars in its place."""

    def __init__(self, *, masks: bool) -> None:
        self.held, self.masks = "", masks

    def feed(self, text: str) -> str:
        shown = ""
        for char in text:
            self.held += char
            if self.held == WORD:
                if not self.masks:
                    raise Blocked("word", "rule 1")
                shown, self.held = shown + "***", ""
            while not WORD.startswith(self.held):
                shown, self.held = shown + self.held[0], self.held[1:]
        return shown

    def finish(self) -> str:
        rest, self.held = self.held, ""
        return rest


class Words:
    """A filter of one word."""

    policy = "1"

    def __init__(self, *, masks: bool = False) -> None:
        self.masks = masks
        self.channels: list[Channel] = []

    def check(self, texts: Iterable[str]) -> None:
        if any(WORD in text for text in texts):
            raise Blocked("word")

    def open(self, channel: Channel) -> Stream:
        self.channels.append(channel)
        return Stream(masks=self.masks)


def put(field: str, text: str) -> dict[str, Any]:
    """A delta or message with a text in one of its places."""
    if field == "arguments":
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    if field == "input":
        return {"tool_calls": [{"index": 0, "custom": {"input": text}}]}
    if field == "function_call":
        return {"function_call": {"arguments": text}}
    return {field: text}


def found(field: str, delta: dict[str, Any]) -> str:
    """The text there."""
    if field in ("arguments", "input"):
        kind = "function" if field == "arguments" else "custom"
        return "".join(call[kind][field] for call in delta.get("tool_calls", ()))
    if field == "function_call":
        return delta.get("function_call", {}).get("arguments", "")
    return delta.get(field) or ""


FIELDS = (
    "content", "refusal", "reasoning", "reasoning_content", "arguments", "input", "function_call",
)  # fmt: skip


def logprobs(text: str) -> dict[str, Any]:
    return {"content": [{"token": text, "logprob": -1.0}]}


def events(field: str, pieces: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A stream with a text in pieces, told twice: as text and by log-probabilities."""
    for piece in pieces:
        choice = {"index": 0, "delta": put(field, piece), "finish_reason": None}
        yield {"choices": [choice | {"logprobs": logprobs(piece)}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def shown(field: str, passing: Filter, pieces: Iterable[str]) -> tuple[str, str, str]:
    """What the client sees: the text, the tokens of log-probabilities, and why it ended."""
    text = tokens = finish = ""
    for event in events(field, pieces):
        if not passing.chunk(event):
            continue
        (choice,) = event["choices"]
        text += found(field, choice["delta"])
        tokens += "".join(
            one["token"] for one in (choice.get("logprobs") or logprobs(""))["content"]
        )
        finish = choice["finish_reason"] or finish
    return text, tokens, finish


def splits(text: str, most: int = 3) -> Iterator[list[str]]:
    """Every way to cut a text in up to so many places."""
    for num in range(most + 1):
        for cuts in combinations(range(1, len(text)), num):
            edges = [0, *cuts, len(text)]
            yield [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("field", FIELDS)
def test_a_forbidden_word_never_shows_however_it_is_cut(field: str):
    text = f"so abca{WORD}xy"
    for pieces in [*splits(text), list(text)]:
        passing = Filter(Words())
        seen, tokens, finish = shown(field, passing, pieces)
        assert text.startswith(seen)
        assert len(seen) <= text.index(WORD)
        assert text.startswith(tokens)
        assert len(tokens) <= len(seen)  # they tell nothing that the text does not
        assert finish == "content_filter"
        assert passing.blocked == Blocked("word", "rule 1")
        assert passing.num_ended == 1


@pytest.mark.parametrize("field", FIELDS)
def test_what_was_replaced_does_not_show_in_log_probabilities_either(field: str):
    text = f"so {WORD} it {WORD}"
    for pieces in [*splits(text), list(text)]:
        seen, tokens, finish = shown(field, Filter(Words(masks=True)), pieces)
        assert seen == "so *** it ***"
        assert WORD not in tokens
        assert finish == "stop"


@given(st.lists(st.text("abc!x", max_size=6), max_size=8), st.sampled_from(FIELDS))
def test_clean_text_is_whole_in_the_end(pieces: list[str], field: str):
    text = "".join(pieces)
    seen, _, finish = shown(field, Filter(Words()), pieces)
    if WORD in text:
        assert WORD not in seen
        assert finish == "content_filter"
    else:
        assert (seen, finish) == (text, "stop")


@given(st.lists(st.text("xyz \u4f60\u597d", max_size=6), max_size=8), st.sampled_from(FIELDS))
def test_text_that_begins_no_word_passes_untouched(pieces: list[str], field: str):
    passing = Filter(Words())
    for event in events(field, pieces):
        before = copy.deepcopy(event)
        assert passing.chunk(event)
        assert json.dumps(event) == json.dumps(before)


def test_choices_and_calls_are_streams_of_their_own():
    words = Words()
    passing = Filter(words)
    for number, place, text in ((0, 0, "abc"), (1, 0, "ab!"), (0, 1, "ab!"), (1, 1, "abc")):
        call = {"index": place, "function": {"arguments": text}}
        passing.chunk({"choices": [{"index": number, "delta": {"tool_calls": [call]}}]})
    assert words.channels == ["arguments"] * 4
    assert passing.blocked is None


def test_one_choice_that_is_stopped_leaves_the_others():
    passing = Filter(Words())
    two = {"choices": [{"index": n, "delta": {"content": t}} for n, t in ((0, WORD), (1, "fine"))]}
    assert passing.chunk(two)
    assert [c.get("finish_reason") for c in two["choices"]] == ["content_filter", None]
    later = {"choices": [{"index": n, "delta": {"content": "more"}} for n in (0, 1)]}
    assert passing.chunk(later)
    assert [choice["index"] for choice in later["choices"]] == [1]
    assert not passing.chunk({"choices": [{"index": 0, "delta": {"content": "more"}}]})


@pytest.mark.parametrize("last", [{"delta": None}, {}, {"delta": {}}])
def test_what_is_held_back_comes_with_the_last_event(last: dict[str, Any]):
    passing = Filter(Words())
    passing.chunk({"choices": [{"index": 0, "delta": {"content": "xab"}}]})
    event = {"choices": [{"index": 0, "finish_reason": "length", **last}]}
    assert passing.chunk(event)
    assert event["choices"][0]["delta"] == {"content": "ab"}


def test_events_without_choices_pass():
    assert Filter(Words()).chunk({"choices": [], "usage": {"prompt_tokens": 1}})


@pytest.mark.parametrize("field", FIELDS)
def test_whole_answers_are_stopped(field: str):
    message = {"role": "assistant"} | put(field, f"so {WORD}")
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    answer["choices"][0]["logprobs"] = logprobs(WORD)
    passing = Filter(Words())
    passing.whole(answer)
    assert WORD not in json.dumps(answer)
    assert answer["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize("field", FIELDS)
def test_whole_answers_that_end_like_a_word_are_whole(field: str):
    message = {"role": "assistant"} | put(field, "so ab")
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    Filter(Words()).whole(answer)
    assert found(field, answer["choices"][0]["message"]) == "so ab"


def test_parts_of_a_content_are_one_text():
    parts = [{"type": "text", "text": "abc"}, {"type": "text", "text": "ab!"}]
    answer = {"choices": [{"index": 0, "message": {"content": parts}, "finish_reason": "stop"}]}
    passing = Filter(Words())
    passing.whole(answer)
    assert passing.blocked
    assert answer["choices"][0]["message"]["content"] == ""


def test_text_completions_are_filtered_too():
    passing = Filter(Words(masks=True))
    event = {"choices": [{"index": 0, "text": f"so {WORD}", "finish_reason": "stop"}]}
    event["choices"][0] |= {"logprobs": {"tokens": [WORD]}, "token_ids": [1]}
    passing.chunk(event)
    assert event["choices"][0] == {"index": 0, "text": "so ***", "finish_reason": "stop"}


@given(st.lists(st.text("abc!x", min_size=1, max_size=6), min_size=1, max_size=8))
def test_what_is_gathered_of_a_filtered_stream_is_what_was_shown(pieces: list[str]):
    passing, gathered = Filter(Words()), Gathered()
    for event in events("content", pieces):
        if passing.chunk(event):
            gathered.add(event)
    assert gathered.message()["content"] == shown("content", Filter(Words()), pieces)[0]
