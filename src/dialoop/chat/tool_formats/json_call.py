"""Tools as JSON in `<tool_call>` tags, for checkpoints whose template knows no tools.

The system message lists the tools, a call is a JSON object in a `<tool_call>` tag, and results come
back in a user message, each in a `<tool_response>` tag: the form that Hermes and Qwen models know,
written with nothing but text. Training and serving both go through `spell` and `parse`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from dialoop.chat.message import (
    Message,
    Text,
    ToolCall,
    decode_arguments,
    message,
    tool_to_openai,
)
from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dialoop.chat.message import Tool

LISTING = """\
You may call these tools. Each line is one tool as a JSON Schema:
<tools>
{tools}
</tools>
To call one, answer with a JSON object in a tag, one tag a call:
<tool_call>
{{"name": "the tool", "arguments": {{}}}}
</tool_call>
The results come in <tool_response> tags."""

_CALL = re.compile(r"\s*<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def spell(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[Message]:
    """The same dialogue in messages of nothing but text.

    Consecutive tool results become one user message.
    """
    out: list[Message] = []
    for item in messages:
        if item.role != "tool":
            out.append(_with_calls(item) if item.tool_calls else item)
        elif out and out[-1].name == _RESULTS:
            out[-1] = _joined(out[-1], _result(item), "\n")
        else:
            out.append(message("user", _result(item), name=_RESULTS))
    out = [replace(item, name=None) if item.name == _RESULTS else item for item in out]
    return _with_listing(out, tools) if tools else out


def parse(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The answer without its calls, and the calls.

    A tag whose content is no call stays in the text: the reader sees what the model wrote.
    """
    calls: list[ToolCall] = []

    def take(found: re.Match[str]) -> str:
        call = _call(found[1])
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    left = _CALL.sub(take, text)
    return (left.strip() if calls else left), tuple(calls)


_RESULTS = "\0tool results"  # marks, within `spell` only, the user messages that it made


def _call(text: str) -> ToolCall | None:
    try:
        raw: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(raw, dict):
        return None
    item = cast("dict[str, Any]", raw)
    if not isinstance(item.get("name"), str):
        return None
    try:
        return ToolCall(item["name"], decode_arguments(item.get("arguments"), "tool_call"))
    except UserError:
        return None


def _with_calls(item: Message) -> Message:
    spelt = "\n".join(
        f"<tool_call>\n{_dump({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"
        for call in item.tool_calls
    )
    return _joined(replace(item, tool_calls=()), spelt, "\n")


def _result(item: Message) -> str:
    return f"<tool_response>\n{item.text}\n</tool_response>"


def _with_listing(messages: list[Message], tools: Iterable[Tool]) -> list[Message]:
    lines = "\n".join(_dump(tool_to_openai(tool)) for tool in tools)
    listing = LISTING.format(tools=lines)
    if messages and messages[0].role == "system":
        return [_joined(messages[0], listing, "\n\n"), *messages[1:]]
    return [message("system", listing), *messages]


def _joined(item: Message, text: str, between: str) -> Message:
    return replace(item, parts=(*item.parts, Text((between if item.text else "") + text)))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
