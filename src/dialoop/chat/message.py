"""Message, the one form in which dialogue crosses packages, and its OpenAI spelling.

The canonical spelling on disk and over HTTP is OpenAI's chat format; everything else is a layout
that `dialoop.data.formats` reads into this one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from dialoop.core.errors import UserError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """A run of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture, by reference."""

    source: str
    """A path, an `http(s)://` address, or a `data:image/...;base64,` URI."""


Part = Text | Image


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the assistant asks for."""

    name: str
    arguments: Json
    """The decoded JSON object."""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the assistant may call."""

    name: str
    description: str = ""
    parameters: Json | None = None
    """JSON Schema of the arguments; None when the function takes none."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    """Only on assistant messages."""
    tool_call_id: str | None = None
    """Only on tool messages: the call that this message answers."""
    name: str | None = None
    thinking: str | None = None
    """The assistant's reasoning before its answer, kept apart from the answer."""
    weight: float | None = None
    """Loss weight of an assistant message; None means the objective's default."""

    @property
    def text(self) -> str:
        """The text parts joined; images leave nothing."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """The picture parts, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image))


def message(role: Role, text: str, **fields: Any) -> Message:
    """A message of one text part."""
    return Message(role, (Text(text),) if text else (), **fields)


def to_openai(item: Message) -> Json:
    """The OpenAI chat spelling of a message: the canonical form on disk and over HTTP."""
    out: Json = {"role": item.role}
    if item.images:
        out["content"] = [_part_to_openai(part) for part in item.parts]
    else:
        out["content"] = item.text
    if item.thinking is not None:
        out["reasoning_content"] = item.thinking
    if item.tool_calls:
        out["tool_calls"] = [_call_to_openai(call, n) for n, call in enumerate(item.tool_calls)]
    for field in ("tool_call_id", "name", "weight"):
        if (value := getattr(item, field)) is not None:
            out[field] = value
    return out


def tool_to_openai(tool: Tool) -> Json:
    """The OpenAI spelling of a tool."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def from_openai(raw: Any, where: str = "messages") -> Message:
    """Read one OpenAI chat message.

    Args:
        raw: the decoded JSON value.
        where: the path of this message in the request, for errors.

    Raises:
        UserError: the value is not an OpenAI chat message.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a message must be an object, got {type(raw).__name__}")
    item = cast("Json", raw)
    role = "system" if item.get("role") == "developer" else item.get("role")
    if role not in ROLES:
        raise UserError(
            f"{where}.role: unknown role {role!r}", hint=f"use one of {', '.join(ROLES)}"
        )
    calls: Any = item.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UserError(f"{where}.tool_calls: expected a list, got {type(calls).__name__}")
    return Message(
        role=role,
        parts=_parts_from_openai(item.get("content"), f"{where}.content"),
        tool_calls=tuple(
            _call_from_openai(call, f"{where}.tool_calls[{n}]")
            for n, call in enumerate(cast("list[Any]", calls))
        ),
        tool_call_id=item.get("tool_call_id"),
        name=item.get("name"),
        thinking=item.get("reasoning_content") or item.get("thinking"),
        weight=item.get("weight"),
    )


def tool_from_openai(raw: Any, where: str = "tools") -> Tool:
    """Read one tool: OpenAI's `{"type": "function", "function": {...}}` or the bare function.

    Raises:
        UserError: the value names no function.
    """
    function: Any = raw
    if isinstance(raw, dict) and "function" in raw:
        function = cast("Json", raw)["function"]
    if not isinstance(function, dict) or not isinstance(cast("Json", function).get("name"), str):
        raise UserError(f"{where}: a tool must be an object with a function name")
    item = cast("Json", function)
    return Tool(item["name"], item.get("description") or "", item.get("parameters"))


def _part_to_openai(part: Part) -> Json:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.source}}


def _parts_from_openai(content: Any, where: str) -> tuple[Part, ...]:
    if content is None or content == "":
        return ()
    if isinstance(content, str):
        return (Text(content),)
    if not isinstance(content, list):
        raise UserError(f"{where}: expected text or a list, got {type(content).__name__}")
    items = cast("list[Any]", content)
    return tuple(_part_from_openai(part, f"{where}[{n}]") for n, part in enumerate(items))


def _part_from_openai(raw: Any, where: str) -> Part:
    if isinstance(raw, str):
        return Text(raw)
    item = cast("Json", raw) if isinstance(raw, dict) else {}
    kind = item.get("type")
    if kind in {"text", "input_text"} and isinstance(item.get("text"), str):
        return Text(item["text"])
    if kind in {"image_url", "input_image"}:
        link = item.get("image_url")
        url = cast("Json", link).get("url") if isinstance(link, dict) else link
        if isinstance(url, str):
            return Image(url)
    if kind == "image" and isinstance(item.get("image"), str):
        return Image(item["image"])
    raise UserError(
        f"{where}: unknown content part of type {kind!r}", hint="use `text` or `image_url` parts"
    )


def _call_to_openai(call: ToolCall, number: int) -> Json:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id or f"call_{number}", "type": "function", "function": function}


def _call_from_openai(raw: Any, where: str) -> ToolCall:
    item = cast("Json", raw) if isinstance(raw, dict) else {}
    function: Any = item.get("function", item)
    if not isinstance(function, dict) or not isinstance(cast("Json", function).get("name"), str):
        raise UserError(f"{where}: a tool call must name its function")
    named = cast("Json", function)
    return ToolCall(named["name"], decode_arguments(named.get("arguments"), where), item.get("id"))


def decode_arguments(raw: Any, where: str) -> Json:
    """Arguments of a call as an object, from an object or its JSON text.

    Raises:
        UserError: not a JSON object.
    """
    value = raw
    if raw is None or raw == "":
        value = {}
    elif isinstance(raw, str):
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise UserError(f"{where}.arguments: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}.arguments: expected an object, got {type(value).__name__}")
    return cast("Json", value)
