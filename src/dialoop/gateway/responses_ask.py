"""Requests of the Responses API, read: the chat that they ask for, and what is told of them again.

What engines cannot do is refused with the field's name: built-in tools, files, stored prompts,
background work. `truncation` decides what becomes of a dialogue that is too long: `auto` leaves the
oldest turns out, `disabled` refuses; the model's own policy holds unless it is given.
Source: OpenAI's API reference of 2026; the Open Responses specification of 2026-04.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from dialoop.gateway import dialogue, items
from dialoop.gateway.call import as_object
from dialoop.gateway.conversations import read_metadata
from dialoop.serve import fields
from dialoop.serve.failure import ApiError, bad

Json = dict[str, Any]

_PLAIN = (
    "model", "stream", "temperature", "top_p", "parallel_tool_calls", "top_logprobs", "user",
    "presence_penalty", "frequency_penalty", "safety_identifier", "prompt_cache_key",
    "service_tier", "pins", "cache", "metadata",
)  # fmt: skip
"""Fields that chats have by the same name."""
_OWN = (
    "input", "instructions", "tools", "tool_choice", "text", "max_output_tokens", "store",
    "previous_response_id", "conversation", "truncation", "include", "reasoning", "background",
    "stream_options", "max_tool_calls",
)  # fmt: skip
_REFUSED = {
    "prompt": "prompts are not stored here: write `instructions` and `input`",
    "context_management": "the gateway's own policy keeps dialogues within the window",
    "prompt_cache_retention": "engines keep prefixes as long as they have room",
}
_LOGPROBS = "message.output_text.logprobs"
_IDLE = (
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""What may be wanted in the answer, and is there already or never arises."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request."""

    chat: Json
    """The body of the chat that it asks for, without what was said before."""
    new: list[Json]
    """Items of the input."""
    told: Json
    """Fields of the response that tell the request again."""
    previous: str | None
    """The response that it goes on from."""
    is_stored: bool
    is_stream: bool
    strategy: Literal["drop", "refuse"] | None
    has_logprobs: bool


def read(body: Json) -> Asked:
    """Check a request.

    Raises:
        ApiError: a field is wrong, or asks for what is not served.
    """
    for name, value in body.items():
        if value is not None and name in _REFUSED:
            raise bad(name, _REFUSED[name])
        if value is not None and name not in _PLAIN and name not in _OWN:
            raise bad(name[:100], "unknown parameter")
    if fields.flag(body, "background"):
        raise bad("background", "responses are made while the client waits: set it to false")
    previous = body.get("previous_response_id")
    if previous is not None and not isinstance(previous, str):
        raise bad("previous_response_id", "the id of a response is required")
    place = dialogue.conversation_id(body)
    if previous and place:
        raise bad("conversation", "not together with `previous_response_id`")
    new = items.read(body.get("input"), "input")
    truncation = _one_of(body, "truncation", ("auto", "disabled"))
    has_logprobs = _has_logprobs(body)
    tools = _tools(body.get("tools"))
    choice, offered = _choice(body.get("tool_choice"), tools)
    text = _text(body.get("text"))
    reasoning = _reasoning(body.get("reasoning"))
    chat: Json = {name: body[name] for name in _PLAIN if body.get(name) is not None}
    chat |= {
        "messages": _messages(body.get("instructions"), new),
        "tools": [_chat_tool(tool) for tool in offered] or None,
        "tool_choice": _chat_choice(choice) if offered and "tool_choice" in body else None,
        "max_completion_tokens": fields.integer(body, "max_output_tokens", 1, None),
        "response_format": _chat_format(text["format"]),
        "verbosity": text.get("verbosity"),
        "reasoning_effort": reasoning["effort"],
        "conversation": place,
        "logprobs": True if has_logprobs else None,
        "stream_options": {"include_usage": True} if fields.flag(body, "stream") else None,
    }
    if not offered:
        chat.pop("parallel_tool_calls", None)
    if not has_logprobs:
        chat.pop("top_logprobs", None)
    _check_stream_options(body)
    return Asked(
        chat={name: value for name, value in chat.items() if value is not None},
        new=new,
        told=_told(body, tools, choice, text, reasoning)
        | {"conversation": {"id": place} if place else None, "truncation": truncation},
        previous=previous,
        is_stored=body.get("store") is None or fields.flag(body, "store"),
        is_stream=fields.flag(body, "stream"),
        strategy={"auto": "drop", "disabled": "refuse"}.get(truncation or ""),  # pyright: ignore[reportArgumentType]
        has_logprobs=has_logprobs,
    )


def _told(body: Json, tools: list[Json], choice: Any, text: Json, reasoning: Json) -> Json:
    """The request in the response; where engines decide by themselves OpenAI's defaults stand."""
    return {
        "instructions": body.get("instructions"),
        "previous_response_id": body.get("previous_response_id"),
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "text": text,
        "reasoning": reasoning,
        "temperature": fields.number(body, "temperature", 1.0, 0, 2),
        "top_p": fields.number(body, "top_p", 1.0, 0, 1),
        "presence_penalty": fields.number(body, "presence_penalty", 0.0, -2, 2),
        "frequency_penalty": fields.number(body, "frequency_penalty", 0.0, -2, 2),
        "top_logprobs": fields.integer(body, "top_logprobs", 0, 20) or 0,
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": fields.integer(body, "max_tool_calls", 1, None),
        "store": body.get("store") is not False,
        "background": False,
        "service_tier": "default",
        "metadata": read_metadata(body.get("metadata")),
        "user": body.get("user"),
        "safety_identifier": body.get("safety_identifier"),
        "prompt_cache_key": body.get("prompt_cache_key"),
    }


def _messages(instructions: Any, new: list[Json]) -> list[Json]:
    messages = items.to_messages(new)
    if instructions is not None:
        if not isinstance(instructions, str):
            raise bad("instructions", "a text is required")
        messages.insert(0, {"role": "system", "content": instructions})
    if not messages:
        raise bad("input", "a message is required beside items that are only kept")
    return messages


def _has_logprobs(body: Json) -> bool:
    raw = body.get("include")
    if raw is None:
        return bool(fields.integer(body, "top_logprobs", 0, 20))
    if not isinstance(raw, list):
        raise bad("include", "a list is required")
    for one in cast("list[Any]", raw):
        if one != _LOGPROBS and one not in _IDLE:
            raise bad("include", f"{one!r:.100} is not known")
    return _LOGPROBS in raw or bool(fields.integer(body, "top_logprobs", 0, 20))


def _tools(raw: Any) -> list[Json]:
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise bad("tools", "a list is required")
    return [_tool(as_object(one), f"tools[{n}]") for n, one in enumerate(cast("list[Any]", raw))]


def _tool(tool: Json, where: str) -> Json:
    kind = tool.get("type")
    if kind != "function":
        raise bad(f"{where}.type", f"only functions are called here, got {kind!r:.60}")
    if not isinstance(tool.get("name"), str):
        raise bad(f"{where}.name", "a text is required")
    for name, wanted in (("description", str), ("parameters", dict), ("strict", bool)):
        if not isinstance(tool.get(name), wanted | None):
            raise bad(f"{where}.{name}", f"{_WORDS[wanted]} is required")
    return {
        "type": "function",
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict"),
    }


_WORDS: dict[type, str] = {str: "a text", dict: "an object", bool: "true or false"}


def _chat_tool(tool: Json) -> Json:
    named = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in named if tool[name] is not None}
    return {"type": "function", "function": function}


def _choice(raw: Any, tools: list[Json]) -> tuple[Any, list[Json]]:
    """The choice as it is told again, and the tools that are offered under it."""
    if raw is None:
        return "auto", tools
    if raw in ("none", "auto", "required"):
        if raw == "required" and not tools:
            raise bad("tool_choice", "`required` needs `tools`")
        return raw, tools
    choice = as_object(raw)
    names = [tool["name"] for tool in tools]
    if choice.get("type") == "function":
        if choice.get("name") not in names:
            raise bad("tool_choice.name", f"no tool {choice.get('name')!r:.100}")
        return {"type": "function", "name": choice["name"]}, tools
    if choice.get("type") == "allowed_tools":
        mode, raw_allowed = choice.get("mode", "auto"), choice.get("tools")
        if mode not in ("auto", "required", "none") or not isinstance(raw_allowed, list):
            raise bad("tool_choice", "`mode` is auto or required, and `tools` is a list")
        allowed = [as_object(one).get("name") for one in cast("list[Any]", raw_allowed)]
        if unknown := [name for name in allowed if name not in names]:
            raise bad("tool_choice.tools", f"no tool {unknown[0]!r:.100}")
        told = {"type": "allowed_tools", "mode": mode}
        told |= {"tools": [{"type": "function", "name": name} for name in allowed]}
        return told, [tool for tool in tools if tool["name"] in allowed]
    raise bad("tool_choice", "none, auto, required, a function or allowed tools")


def _chat_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if choice["type"] == "allowed_tools":
        return choice["mode"]
    return {"type": "function", "function": {"name": choice["name"]}}


def _text(raw: Any) -> Json:
    if raw is not None and not isinstance(raw, dict):
        raise bad("text", "an object is required")
    given = as_object(raw)
    text: Json = {"format": _format(given.get("format"))}
    if given.get("verbosity") is not None:
        text["verbosity"] = _one_of(given, "verbosity", ("low", "medium", "high"), "text.")
    return text


def _format(raw: Any) -> Json:
    if raw is None:
        return {"type": "text"}
    given = as_object(raw)
    kind = given.get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise bad("text.format.type", "text, json_object or json_schema")
    if not isinstance(given.get("name"), str) or not isinstance(given.get("schema"), dict):
        raise bad("text.format", "`name` and `schema`, a JSON Schema, are required")
    return {
        "type": kind,
        "name": given["name"],
        "description": given.get("description"),
        "schema": given["schema"],
        "strict": fields.flag(given, "strict"),
    }


def _chat_format(form: Json) -> Json | None:
    if form["type"] == "text":
        return None
    if form["type"] == "json_object":
        return form
    inner = {name: one for name, one in form.items() if name != "type" and one is not None}
    return {"type": "json_schema", "json_schema": inner}


def _reasoning(raw: Any) -> Json:
    if raw is not None and not isinstance(raw, dict):
        raise bad("reasoning", "an object is required")
    given = as_object(raw)
    effort = given.get("effort")
    if effort is not None and not isinstance(effort, str):
        raise bad("reasoning.effort", "a text is required")
    return {"effort": effort, "summary": None}


def _check_stream_options(body: Json) -> None:
    options = body.get("stream_options")
    if options is None:
        return
    if not isinstance(options, dict) or cast("Json", options).keys() - {"include_obfuscation"}:
        raise bad("stream_options", "only `include_obfuscation` is known")
    if fields.flag(cast("Json", options), "include_obfuscation"):
        raise ApiError(
            400,
            "stream_options: sizes of events are not disguised here",
            param="stream_options.include_obfuscation",
        )


def _one_of(body: Json, name: str, known: tuple[str, ...], path: str = "") -> str | None:
    value = body.get(name)
    if value is not None and value not in known:
        raise bad(path + name, f"one of {', '.join(known)}, got {value!r:.60}")
    return value
