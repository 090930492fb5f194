"""Tools as JSON in text: what is written reads back."""

import pytest

from dialoop.chat.message import Message, Tool, ToolCall, message
from dialoop.chat.tool_formats.json_call import parse, spell

CALLS = (ToolCall("weather", {"city": "乌尔姆", "n": [1, None]}), ToolCall("now", {}))


def test_calls_read_back_as_they_were_written() -> None:
    (spelt,) = spell([Message("assistant", message("assistant", "One moment.").parts, CALLS)])
    assert spelt.tool_calls == ()
    assert parse(spelt.text) == ("One moment.", CALLS)
    (bare,) = spell([Message("assistant", (), CALLS)])
    assert bare.text.startswith("<tool_call>")
    assert parse(bare.text) == ("", CALLS)


@pytest.mark.parametrize(
    "text",
    [
        "  no call, with spaces ",
        "<tool_call>not json</tool_call>",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f"',
    ],
)
def test_what_is_no_call_stays_in_the_text(text: str) -> None:
    assert parse(text) == (text, ())


def test_arguments_given_as_json_text_are_read() -> None:
    _, (call,) = parse('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>')
    assert call == ToolCall("f", {"a": 1})


def test_results_in_a_row_become_one_user_message() -> None:
    dialogue = [
        message("user", "a", name="ann"),
        Message("assistant", (), CALLS),
        message("tool", "rain", tool_call_id="1"),
        message("tool", "noon", tool_call_id="2"),
        message("assistant", "done"),
    ]
    spelt = spell(dialogue)
    assert [item.role for item in spelt] == ["user", "assistant", "user", "assistant"]
    assert spelt[0] == dialogue[0]
    assert spelt[2].text.count("<tool_response>") == 2
    assert spelt[2].name is None


def test_the_system_message_lists_the_tools() -> None:
    tools = (Tool("weather", "of a place"), Tool("now"))
    with_system = spell([message("system", "Be kind."), message("user", "a")], tools)
    without = spell([message("user", "a")], tools)
    assert with_system[0].text.startswith("Be kind.\n\nYou may call these tools.")
    assert [item.role for item in without] == ["system", "user"]
    for item in (with_system[0], without[0]):
        assert item.text.count('"type": "function"') == 2
