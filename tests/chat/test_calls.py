"""Calls are read as they come, in whatever pieces, and syntaxes are found by rendering."""

import json
from typing import Any

import pytest

from dialoop.chat.calls import PROBE, TAGS, CallReader, CallSyntax, call_schema, find_syntax
from dialoop.chat.message import ToolCall

HERMES = '<tool_call>\n{"name": "f", "arguments": {"x": "a}</tool_call>b"}}\n</tool_call>'
LLAMA = CallSyntax("", "", "parameters")
SPECIAL = CallSyntax("<|action_start|><|plugin|>\n", "<|action_end|>\n", "parameters")


def read(syntax: CallSyntax, text: str, size: int) -> tuple[str, list[ToolCall]]:
    reader = CallReader(syntax)
    said, calls = "", []
    for start in range(0, len(text), size):
        more, found = reader.push(text[start : start + size])
        said, calls = said + more, [*calls, *found]
    more, found = reader.finish()
    return said + more, [*calls, *found]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("syntax", "text", "said", "num"),
    [
        (TAGS, "Hello.", "Hello.", 0),
        (TAGS, HERMES, "", 1),
        (TAGS, f"Well.\n\n{HERMES}\n{HERMES}\n", "Well.", 2),
        (TAGS, HERMES.removesuffix("\n</tool_call>"), "", 1),
        (TAGS, "a <tool_call> b", "a <tool_call> b", 0),
        (TAGS, "<tool_call>{not JSON}</tool_call> c", "<tool_call>{not JSON}</tool_call> c", 0),
        (TAGS, "1 < 2 ", "1 < 2 ", 0),
        (LLAMA, '{"name": "f", "parameters": {"x": "a}</tool_call>b"}}', "", 1),
        (LLAMA, '{"a": 1} is JSON', '{"a": 1} is JSON', 0),
        (LLAMA, "no {brace} first", "no {brace} first", 0),
        (
            SPECIAL,
            'Hm.<|action_start|><|plugin|>\n{"name": "f", "parameters":'
            ' {"x": "a}</tool_call>b"}}<|action_end|>',
            "Hm.",
            1,
        ),
    ],
)
def test_calls_are_read_in_any_pieces(
    syntax: CallSyntax, text: str, said: str, num: int, size: int
) -> None:
    found, calls = read(syntax, text, size)
    assert found == said
    assert calls == [ToolCall("f", {"x": "a}</tool_call>b"})] * num


def test_text_without_a_mark_is_not_held_back() -> None:
    assert CallReader(TAGS).push("Hello, 1 < 2")[0] == "Hello, 1 < 2"
    assert CallReader(TAGS).push("Hello <tool")[0] == "Hello"


@pytest.mark.parametrize("syntax", [TAGS, LLAMA, SPECIAL])
def test_a_syntax_is_found_in_a_rendered_call(syntax: CallSyntax) -> None:
    spelt = json.dumps({"name": PROBE.name, syntax.arguments: PROBE.arguments})
    found = find_syntax(f"{syntax.begin}{spelt}{syntax.end}<|im_end|>\n", "<|im_end|>")
    assert found == syntax


def test_thoughts_before_a_call_are_no_part_of_its_syntax() -> None:
    spelt = json.dumps({"name": PROBE.name, "arguments": PROBE.arguments})
    rendered = f"<think>\n\n</think>\n\n<tool_call>\n{spelt}\n</tool_call><|im_end|>"
    assert find_syntax(rendered, "<|im_end|>") == TAGS


def test_other_ways_to_call_are_not_known() -> None:
    assert find_syntax("<function=look_up_7319><place>731904</place>", "") is None
    spelt = json.dumps({"name": PROBE.name, "arguments": PROBE.arguments, "id": "1"})
    assert find_syntax(f"[TOOL_CALLS][{spelt}]", "") is None


def test_references_of_a_tool_still_hit_in_the_schema_of_its_call() -> None:
    own: dict[str, Any] = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/X"}},
        "$defs": {"X": {"type": "boolean"}},
    }
    schema = call_schema({"f": own, "g": own}, TAGS)
    link = schema["$defs"]["tool_1"]["properties"]["x"]["$ref"]
    place: Any = schema
    for step in link.removeprefix("#/").split("/"):
        place = place[step]
    assert place == {"type": "boolean"}
