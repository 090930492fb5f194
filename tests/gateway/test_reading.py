"""Whatever JSON comes, requests are read or refused; nothing else is raised."""

import json
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialoop.gateway import ask, dialogue, items, responses_ask
from dialoop.gateway.conversations import read_metadata
from dialoop.gateway.spec import Sizes
from dialoop.serve.failure import ApiError

WORDS = [
    "message", "function", "function_call", "function_call_output", "reasoning", "input_text",
    "output_text", "input_image", "text", "image_url", "refusal", "user", "assistant", "system",
    "developer", "tool", "auto", "required", "none", "allowed_tools", "json_schema", "low",
    "disabled", "x", "",
]  # fmt: skip
NAMES = [
    "type", "role", "content", "text", "image_url", "url", "detail", "refusal", "call_id", "id",
    "name", "arguments", "output", "summary", "phase", "function", "tool_calls", "tool_call_id",
    "format", "schema", "strict", "mode", "tools", "effort", "parameters", "file_id", "status",
]  # fmt: skip
plain = st.sampled_from(WORDS) | st.none() | st.booleans() | st.integers(-2, 3) | st.just(1e308)
values: Any = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)
    ),
    max_leaves=12,
)
some = st.sampled_from


def near(required: dict[str, Any], *names: str) -> Any:
    """Objects that look right, with anything in some of their fields."""
    odd: dict[str, Any] = {}
    odd.update(dict.fromkeys(names, values))
    return st.fixed_dictionaries(required, optional=odd)


kinds = some(["text", "input_text", "output_text", "image_url", "input_image", "refusal"])
part = near({"type": kinds}, "text", "image_url", "url", "detail", "refusal", "file_id")
roles = some(["user", "assistant", "system", "developer", "tool", "function"])
word = st.text(max_size=3)
content = word | word | st.lists(part, max_size=3) | values
calls = st.lists(near({"type": st.just("function")}, "id", "function") | values, max_size=2)
message = st.fixed_dictionaries(
    {"role": roles, "tool_call_id": word | values},
    optional={"content": content, "tool_calls": calls},
)
item = (
    st.fixed_dictionaries({"role": roles, "content": content}, optional={"phase": values})
    | near(
        {"type": some(["function_call", "function_call_output", "reasoning", "message"])},
        *NAMES[1:],
    )
    | values
)
tool = near({"type": st.just("function"), "name": some(["f", "g"])}, "parameters", "strict")
choice = near(
    {"type": some(["function", "allowed_tools"]), "tools": st.lists(tool | values, max_size=2)},
    "mode",
    "name",
)
form = near({"type": some(["json_schema", "json_object", "text"])}, "name", "schema", "strict")
nested: dict[str, Any] = {
    "tool_choice": choice | values,
    "text": st.fixed_dictionaries({"format": form | values}, optional={"verbosity": values}),
    "reasoning": near({}, "effort", "summary"),
    "stream_options": values,
    "include": st.lists(values, max_size=2),
}
FIELDS = [*responses_ask._PLAIN, *responses_ask._OWN, *responses_ask._REFUSED, "colour"]
calm = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parsed(value: Any) -> Any:
    """The value as it comes out of a body."""
    return orjson.loads(json.dumps(value))


@calm
@given(
    st.dictionaries(some(FIELDS), values, max_size=1) | st.fixed_dictionaries({}, optional=nested),
    word | st.lists(item, max_size=3),
    st.just([{"type": "function", "name": "f"}]) | st.lists(tool, max_size=2),
)
def test_any_response_is_read_or_refused(body: dict[str, Any], said: Any, tools: Any) -> None:
    try:
        asked = responses_ask.read(parsed({"model": "m", "input": said, "tools": tools} | body))
        ask.check("chat", asked.chat, Sizes())
    except ApiError as error:
        assert 400 <= error.status < 500  # noqa: PT017  it may be read, too
        return
    orjson.dumps(asked.chat)
    orjson.dumps(asked.told)


@calm
@given(st.lists(message, min_size=1, max_size=2))
def test_any_chat_becomes_items_or_is_refused(messages: list[Any]) -> None:
    body = parsed({"model": "m", "messages": messages})
    try:
        ask.check("chat", body, Sizes())
        kept = items.from_messages(body["messages"])
    except ApiError as error:
        assert error.status in (400, 413)  # noqa: PT017  it may be read, too
        return
    orjson.dumps(items.to_messages(kept))


@calm
@given(st.lists(item, min_size=1, max_size=4))
def test_any_item_is_read_or_refused(given_items: list[Any]) -> None:
    try:
        kept = items.read(parsed(given_items), "items")
    except ApiError as error:
        assert error.param  # noqa: PT017  it may be read, too
        assert error.param.startswith("items")  # noqa: PT017  it may be read, too
        return
    orjson.dumps(items.to_messages(kept))


@calm
@given(values, values)
def test_other_fields_are_read_or_refused(one: Any, other: Any) -> None:
    def place(value: Any) -> Any:
        return dialogue.conversation_id({"conversation": value})

    for read, value in ((dialogue.read_pins, one), (read_metadata, other), (place, other)):
        try:
            read(parsed(value))
        except ApiError as error:
            assert error.status == 400  # noqa: PT017  it may be read, too
