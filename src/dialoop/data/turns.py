"""Turns: every spelling of roles, content parts, tool calls, tools and pictures as Messages."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dialoop.chat.message import (
    Image,
    Message,
    Text,
    Tool,
    ToolCall,
    decode_arguments,
    message,
    tool_from_openai,
)
from dialoop.core.errors import UserError
from dialoop.data.columns import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.message import Part, Role
    from dialoop.data.columns import Row

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "系统": "system",
    "user": "user", "human": "user", "customer": "user", "用户": "user", "客户": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "model": "assistant", "agent": "assistant", "助手": "assistant", "客服": "assistant",
    "tool": "tool", "observation": "tool", "observations": "tool", "function": "tool",
    "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
CALL_ROLES = {"function_call", "tool_call", "tool_calls"}
PLACEHOLDER = "<image>"
_ROLE_KEYS = ("role", "from", "speaker")
_BODY_KEYS = ("content", "value", "text", "message")


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns that name their role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, dict) and any(k in t for k in _ROLE_KEYS) for t in value)
    )


def read_turns(raw: Any) -> tuple[Message, ...]:
    """Messages of a list of turns; calls in a row become one message, as OpenAI spells them.

    Raises:
        RecordError: a turn is not one.
    """
    if isinstance(raw, dict):
        raw = [raw]
    if not isinstance(raw, list):
        raise RecordError("turns are not a list", type(raw).__name__)
    out: list[Message] = []
    for turn in raw:
        for item in _read_turn(turn):
            last = out[-1] if out else None
            if last and item.tool_calls and not item.parts and last.role == "assistant":
                calls = (*last.tool_calls, *item.tool_calls)
                weight = last.weight if item.weight is None else item.weight
                out[-1] = replace(last, tool_calls=calls, weight=weight)
            else:
                out.append(item)
    return tuple(out)


def _read_turn(turn: Any) -> list[Message]:
    if not isinstance(turn, dict):
        raise RecordError("a turn is not an object", repr(turn)[:80])
    name = next((turn[k] for k in _ROLE_KEYS if turn.get(k) is not None), None)
    body = next((turn[k] for k in _BODY_KEYS if turn.get(k) is not None), None)
    if not isinstance(name, str):
        raise RecordError("a turn has no role", ", ".join(turn))
    lowered = name.lower()
    if lowered in CALL_ROLES:
        weight = _weight(turn, "assistant")
        return [Message("assistant", tool_calls=_calls(body), weight=weight)]
    if lowered not in ROLES:
        raise RecordError("unknown role", repr(name))
    return _compose(turn, ROLES[lowered], body)


def _compose(turn: dict[str, Any], role: Role, body: Any) -> list[Message]:
    """The message of one turn, behind the tool results that its content may hold."""
    parts, thinking, calls, results = _parts(body)
    given = turn.get("reasoning_content") or turn.get("thinking") or turn.get("reasoning")
    calls += _calls(turn.get("tool_calls") or turn.get("function_call"))
    if results and not parts and not calls:
        return results
    if calls and role != "assistant":
        raise RecordError("a tool call outside an assistant turn", role)
    call_id, name = turn.get("tool_call_id"), turn.get("name")
    item = Message(
        role=role,
        parts=parts,
        tool_calls=calls,
        tool_call_id=call_id if role == "tool" and isinstance(call_id, str) else None,
        name=name if isinstance(name, str) else None,
        thinking=thinking or (given if isinstance(given, str) else None),
        weight=_weight(turn, role),
    )
    return [*results, item]


def _weight(turn: dict[str, Any], role: Role) -> float | None:
    for key in ("weight", "loss_weight", "loss_scale", "loss"):
        value = turn.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or value < 0:
            raise RecordError("a loss weight is not a number of 0 or more", repr(value))
        if role == "assistant":
            return float(value)
        if value and key != "loss_scale":
            raise RecordError("a loss weight on a turn that is not the assistant's", role)
    return None


Content = tuple[tuple["Part", ...], str | None, tuple[ToolCall, ...], list[Message]]


def _parts(body: Any) -> Content:
    """(parts, thinking, tool calls, tool results) of a content."""
    if body is None or body == "":
        return (), None, (), []
    if isinstance(body, str):
        return (Text(body),), None, (), []
    if isinstance(body, int | float):
        return (Text(str(body)),), None, (), []
    if isinstance(body, dict):
        body = [body] if "type" in body else [{"type": "text", "text": json.dumps(body)}]
    if not isinstance(body, list):
        raise RecordError("content is neither text nor a list of parts", type(body).__name__)
    parts: list[Part] = []
    thinking: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    results: list[Message] = []
    for raw in body:
        part = {"type": "text", "text": raw} if isinstance(raw, str) else raw
        if not isinstance(part, dict):
            raise RecordError("a content part is not an object", repr(raw)[:80])
        kind = part.get("type")
        value = part.get("value", part.get("text"))
        if kind in {"text", "input_text", "output_text"} and isinstance(value, str):
            parts.append(Text(value))
        elif kind in {"reasoning", "thinking"}:
            thinking.append(str(value if value is not None else part.get("thinking", "")))
        elif kind in {"tool_call", "tool_use", "function_call"}:
            calls += _calls(value if isinstance(value, str | dict | list) else part)
        elif kind == "tool_result":
            results.append(_tool_result(part))
        elif kind in {"image", "image_url", "input_image"}:
            parts.append(Image(picture(_image_value(part))))
        else:
            raise RecordError("content of a kind that is not read", repr(kind))
    return tuple(parts), "\n".join(thinking) or None, calls, results


def _image_value(part: dict[str, Any]) -> Any:
    for key in ("image_url", "image", "value", "url", "path", "source"):
        if (value := part.get(key)) is not None:
            return value
    return None


def _tool_result(part: dict[str, Any]) -> Message:
    body, _, _, _ = _parts(part.get("content", part.get("value")))
    call = part.get("tool_use_id")
    return Message("tool", body, tool_call_id=call if isinstance(call, str) else None)


def picture(value: Any) -> str:
    """Where a picture is: path, address or data URI.

    Raises:
        RecordError: it is none of them.
    """
    if isinstance(value, dict):
        if isinstance(data := value.get("data"), str):
            return f"data:{value.get('media_type', 'image/png')};base64,{data}"
        if isinstance(data := value.get("bytes"), str):
            return _data_uri(data)
        value = value.get("url") or value.get("path")
    if not isinstance(value, str) or not value:
        raise RecordError("a picture is neither path, address nor base64", repr(value)[:80])
    bare = len(value) > 256 and not value.startswith(("data:", "http", "/", "."))
    return _data_uri(value) if bare else value


def _data_uri(data: str) -> str:
    kinds = {"/9j/": "jpeg", "iVBO": "png", "R0lG": "gif", "UklG": "webp"}
    return f"data:image/{kinds.get(data[:4], 'png')};base64,{data}"


def _calls(raw: Any) -> tuple[ToolCall, ...]:
    """Calls in any spelling: one or a list, objects or their JSON, OpenAI's or the bare one."""
    if raw is None or raw in ("", []):
        return ()
    if isinstance(raw, str):
        try:
            raw = json.loads(raw, strict=False)
        except ValueError as error:
            raise RecordError("a tool call is not JSON", str(error)) from error
    items = raw if isinstance(raw, list) else [raw]
    return tuple(_call(item) for item in items)


def _call(raw: Any) -> ToolCall:
    item = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise RecordError("a tool call does not name its function", repr(raw)[:80])
    arguments = next((item[k] for k in ("arguments", "parameters", "input") if k in item), None)
    try:
        decoded = decode_arguments(arguments, item["name"])
    except UserError as error:
        raise RecordError("a tool call's arguments are not a JSON object", str(error)) from error
    call_id = raw.get("id")
    return ToolCall(item["name"], decoded, call_id if isinstance(call_id, str) else None)


def read_tools(raw: Any) -> tuple[Tool, ...]:
    """Tools from a list, one object, or their JSON text.

    Raises:
        RecordError: not tools.
    """
    if isinstance(raw, str):
        try:
            raw = json.loads(raw) if raw.strip() else None
        except ValueError as error:
            raise RecordError("the tools column is not JSON", str(error)) from error
    if raw is None or raw == []:
        return ()
    items = raw if isinstance(raw, list) else [raw]
    try:
        return tuple(tool_from_openai(_decoded(item)) for item in items)
    except (UserError, ValueError) as error:
        raise RecordError("a tool has no function name", str(error)) from error


def _decoded(item: Any) -> Any:
    return json.loads(item) if isinstance(item, str) else item


def body(value: Any) -> str:
    """The text of a cell.

    Raises:
        RecordError: it is not text.
    """
    if value is None:
        return ""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RecordError("a column that should be text is not", type(value).__name__)
    return value if isinstance(value, str) else str(value)


def question(value: Any) -> tuple[Message, ...]:
    """What is asked: text, or turns."""
    if isinstance(value, list | dict):
        return read_turns(value)
    text = body(value)
    if not text.strip():
        raise RecordError("empty question")
    return (message("user", text),)


def answer(value: Any) -> tuple[Message, ...]:
    """What is answered: text, or turns."""
    if is_turns(value) or isinstance(value, dict):
        return read_turns(value)
    text = body(value)
    if not text.strip():
        raise RecordError("empty answer")
    return (message("assistant", text),)


def history(raw: Any) -> tuple[Message, ...]:
    """Earlier rounds: `[[question, answer], ...]`, turns, or `[{query, response}, ...]`."""
    if raw is None or raw in ("", []):
        return ()
    if is_turns(raw):
        return read_turns(raw)
    if not isinstance(raw, list):
        raise RecordError("the history is not a list", type(raw).__name__)
    out: list[Message] = []
    for item in raw:
        pair = list(item.values()) if isinstance(item, dict) else item
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError("a round of the history is not a pair", repr(item)[:80])
        asked, answered = body(pair[0]), body(pair[1])
        out += [message("user", asked)] if asked else []
        out += [message("assistant", answered)] if answered else []
    return tuple(out)


def with_system(row: Row, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages behind the system column's text, if there is one."""
    text = body(row.field("system"))
    if not text.strip():
        return tuple(messages)
    if messages and messages[0].role == "system":
        if messages[0].text == text:
            return tuple(messages)
        raise RecordError("two system prompts", "one in its column, one in the messages")
    return (message("system", text), *messages)


def with_images(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the pictures of the images column where the placeholders are, or first in the question.

    Raises:
        RecordError: there are more or fewer placeholders than pictures.
    """
    if row.has("videos", "audios"):
        raise RecordError("content of a kind that is not read", "video or audio")
    raw = row.field("images")
    if raw is None or raw in ("", []):
        return messages
    pictures = [Image(picture(item)) for item in (raw if isinstance(raw, list) else [raw])]
    places = sum(item.text.count(PLACEHOLDER) for item in messages)
    if places == 0:
        first = next((n for n, m in enumerate(messages) if m.role == "user"), None)
        if first is None:
            raise RecordError("pictures without a question")
        filled = replace(messages[first], parts=(*pictures, *messages[first].parts))
        return (*messages[:first], filled, *messages[first + 1 :])
    if places != len(pictures):
        raise RecordError(
            "placeholders and pictures do not match", f"{places} for {len(pictures)} pictures"
        )
    queue = iter(pictures)
    return tuple(replace(m, parts=_fill(m.parts, queue)) for m in messages)


def _fill(parts: tuple[Part, ...], queue: Any) -> tuple[Part, ...]:
    out: list[Part] = []
    for part in parts:
        if isinstance(part, Image):
            out.append(part)
            continue
        for number, piece in enumerate(part.text.split(PLACEHOLDER)):
            if number:
                out.append(next(queue))
            if piece:
                out.append(Text(piece))
    return tuple(out)
