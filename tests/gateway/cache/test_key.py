"""No two requests that differ share a key; what may be kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoop.gateway.cache import TENANT_BYTES, tenant_digest
from dialoop.gateway.cache.key import Origin, cache_key, group_key, is_cacheable, is_storable

Json = dict[str, Any]
ORIGIN = Origin("tenant", "tenant", "", "chat", "model", "r1", "p1")
BODY: Json = {
    "model": "model",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ],
    "temperature": 0,
}

names = st.text(max_size=12)
texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
origins = st.builds(
    Origin,
    tenant=st.sampled_from(["a", "b", "ab"]),
    scope=st.sampled_from(["key", "tenant", "conversation"]),
    owner=st.sampled_from(["", "a", "b"]),
    endpoint=st.sampled_from(["chat", "completions"]),
    model=st.sampled_from(["m", "n"]),
    release=st.sampled_from(["r1", "r2", ""]),
    policy=st.sampled_from(["p1", "p2", ""]),
)
FIELDS = (
    *("messages", "prompt", "tools", "tool_choice", "temperature", "top_p", "top_k", "min_p"),
    *("seed", "stop", "max_tokens", "max_completion_tokens", "presence_penalty", "n"),
    *("frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs"),
    *("response_format", "chat_template_kwargs", "reasoning_effort", "some_field_of_tomorrow"),
)
fields = st.sampled_from(FIELDS)
bodies = st.dictionaries(fields, values, max_size=5)
FREE = ("stream", "stream_options", "user", "metadata", "safety_identifier", "service_tier")


def typed(value: Any) -> Any:
    """A value that equals another only where both are the same JSON."""
    if isinstance(value, dict):
        return ("dict", frozenset((name, typed(one)) for name, one in value.items()))
    if isinstance(value, list):
        return ("list", tuple(map(typed, value)))
    return (type(value), value)


@settings(max_examples=400, deadline=None)
@given(origins, bodies, origins, bodies)
def test_keys_are_equal_exactly_where_all_is_equal(
    one: Origin, first: Json, other: Origin, second: Json
) -> None:
    is_same = one == other and typed(first) == typed(second)
    assert (cache_key(one, first) == cache_key(other, second)) == is_same


@settings(max_examples=300, deadline=None)
@given(bodies, fields, values, values)
def test_any_change_of_one_field_gives_another_key(
    body: Json, name: str, one: Any, other: Any
) -> None:
    key = cache_key(ORIGIN, body | {name: one})
    assert (key == cache_key(ORIGIN, body | {name: other})) == (typed(one) == typed(other))
    absent = {field: value for field, value in body.items() if field != name}
    assert key != cache_key(ORIGIN, absent)


@settings(max_examples=100, deadline=None)
@given(bodies, st.randoms(use_true_random=False), st.dictionaries(st.sampled_from(FREE), values))
def test_order_and_the_form_of_the_answer_do_not_matter(body: Json, random: Any, free: Json):
    items = list((body | free).items())
    random.shuffle(items)
    assert cache_key(ORIGIN, dict(items)) == cache_key(ORIGIN, body)


@pytest.mark.parametrize("name", ["tenant", "owner", "endpoint", "model", "release", "policy"])
def test_every_part_of_the_origin_is_in_the_key(name: str) -> None:
    other = replace(ORIGIN, **{name: "another"})
    assert cache_key(other, BODY) != cache_key(ORIGIN, BODY)
    assert group_key(other, BODY) != group_key(ORIGIN, BODY)


def test_who_may_be_given_an_answer_is_in_the_key() -> None:
    scoped = [replace(ORIGIN, scope=scope, owner="x") for scope in ("key", "tenant")]
    scoped.append(replace(ORIGIN, scope="conversation", owner="x"))
    assert len({cache_key(one, BODY) for one in scoped}) == 3
    assert cache_key(ORIGIN, BODY)[:TENANT_BYTES] == tenant_digest("tenant")


def test_the_whole_history_is_in_the_key() -> None:
    """Not the last message alone: `yes` means something else in every dialogue."""
    keys = {cache_key(ORIGIN, BODY)}
    for place in range(4):
        messages = [dict(one) for one in BODY["messages"]]
        messages[place]["content"] += "!"
        keys.add(cache_key(ORIGIN, BODY | {"messages": messages}))
    assert len(keys) == 5


@settings(max_examples=300, deadline=None)
@given(origins, bodies, origins, bodies, texts, texts)
def test_groups_are_equal_exactly_where_all_but_the_last_text_is(
    one: Origin, first: Json, other: Origin, second: Json, text: str, later: str
) -> None:
    def with_last(body: Json, said: str) -> Json:
        return body | {"messages": [*BODY["messages"], {"role": "user", "content": said}]}

    first.pop("messages", None)
    second.pop("messages", None)
    left, right = group_key(one, with_last(first, text)), group_key(other, with_last(second, later))
    assert left is not None
    assert right is not None
    assert (left[1], right[1]) == (text, later)
    assert (left[0] == right[0]) == (one == other and typed(first) == typed(second))
    assert left[0] != cache_key(one, with_last(first, text))


def test_groups_tell_histories_and_names_apart() -> None:
    known = group_key(ORIGIN, BODY)
    assert known is not None
    for place in range(3):
        messages = [dict(one) for one in BODY["messages"]]
        messages[place]["content"] += "!"
        found = group_key(ORIGIN, BODY | {"messages": messages})
        assert found is not None
        assert found[0] != known[0]
    named = [*BODY["messages"][:-1], {"role": "user", "name": "ann", "content": "three"}]
    found = group_key(ORIGIN, BODY | {"messages": named})
    assert found is not None
    assert found[0] != known[0]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "text",
        ["text"],
        [{"role": "assistant", "content": "x"}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    ],
)
def test_only_a_last_text_of_the_user_has_a_group(messages: Any) -> None:
    assert group_key(ORIGIN, BODY | {"messages": messages}) is None


IMAGE = {"type": "image_url", "image_url": {"url": "https://host/picture.png"}}
DATA = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "pay"}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.7}, False),
        ({"temperature": None}, False),
        ({"temperature": 0.7, "seed": 0}, True),
        ({"temperature": 0.7, "seed": 1.8446744073709552e19}, False),
        ({"n": 1}, True),
        ({"n": 2}, False),
        ({"best_of": 2}, False),
        ({"tools": []}, True),
        ({"tools": [TOOL]}, False),
        ({"tools": [TOOL], "tool_choice": "none"}, True),
        ({"tools": [TOOL], "tool_choice": "auto"}, False),
        ({"functions": [{}]}, False),
        ({"web_search_options": {}}, False),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, False),
        ({"messages": [{"role": "user", "content": [DATA]}]}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, True),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, False),
        ({"messages": [{"role": "user", "content": ["x"]}]}, False),
    ],
)
def test_what_has_one_answer(change: Json, expected: bool) -> None:
    assert is_cacheable(BODY | change) is expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ({"choices": [{"finish_reason": "stop"}]}, True),
        ({"choices": [{"finish_reason": "length"}]}, True),
        ({"choices": [{"finish_reason": None}]}, False),
        ({"choices": [{"finish_reason": "error"}]}, False),
        ({"choices": [{"finish_reason": "content_filter"}]}, False),
        ({"choices": [{"finish_reason": "stop"}], "error": {}}, False),
        ({"choices": []}, False),
        ({}, False),
    ],
)
def test_only_whole_answers_are_kept(completion: Json, expected: bool) -> None:
    assert is_storable(completion) is expected
