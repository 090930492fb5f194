"""Items, of which conversations and responses are made, and the chat messages they stand for.

A message's text, images and calls go over in both ways; ids of items are always the gateway's own.
Reasoning is kept as an item and never asked of an engine again: chat templates take it out. Calls
and messages with status `incomplete` are kept, too: a call whose arguments were cut, and a message
of the user that nothing answered, are no part of the prompts that follow.
Source: OpenAI's API reference of 2026, Responses and Conversations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from dialoop.gateway.call import as_object
from dialoop.gateway.store.ids import new_id
from dialoop.serve.failure import bad

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]
Status = Literal["completed", "incomplete"]

SYSTEM = ("system", "developer")
_ROLES = ("user", "assistant", *SYSTEM)
_DETAILS = ("auto", "low", "high", "original")


def read(raw: Any, param: str) -> list[Json]:
    """What a client gives as input: a text, or items.

    Args:
        raw: the field's value.
        param: its name.

    Raises:
        ApiError: it is something else, or an item that cannot be served.
    """
    if isinstance(raw, str):
        return [_message("user", [_input_text(raw)])]
    if not isinstance(raw, list) or not raw:
        raise bad(param, "a text or a list of at least one item is required")
    return [_item(one, f"{param}[{place}]") for place, one in enumerate(cast("list[Any]", raw))]


def from_messages(messages: Sequence[Json], param: str = "messages") -> list[Json]:
    """The items that checked chat messages are.

    Raises:
        ApiError: a message has what no item can hold.
    """
    found: list[Json] = []
    for place, message in enumerate(messages):
        found += _of_message(message, f"{param}[{place}]")
    return found


def from_answer(message: Json, status: Status = "completed") -> list[Json]:
    """The items that an engine's answer is.

    Args:
        message: of the assistant, as far as it came.
        status: whether it is whole.
    """
    found: list[Json] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        content = [{"type": "reasoning_text", "text": thought}]
        found.append({"id": new_id("rs"), "type": "reasoning", "summary": [], "content": content})
    parts: list[Json] = []
    if text := message.get("content"):
        parts.append(output_text(text))
    if refusal := message.get("refusal"):
        parts.append({"type": "refusal", "refusal": refusal})
    calls = message.get("tool_calls") or ()
    if parts or not (calls or found):
        found.append(_message("assistant", parts or [output_text("")], status))
    return found + [_call(call, status) for call in calls]


def to_messages(items: Sequence[Json]) -> list[Json]:
    """The chat messages that items stand for."""
    messages: list[Json] = []
    for item in items:
        kind, is_cut = item["type"], item.get("status") == "incomplete"
        if kind == "message":
            if not is_cut or item["role"] == "assistant":
                messages.append({"role": _role(item), "content": _content(item["content"])})
        elif kind == "function_call" and not is_cut:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = item["output"]
            content = output if isinstance(output, str) else _content(output)
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
    return messages


def output_text(text: str, logprobs: Sequence[Json] = ()) -> Json:
    """A part of a message that the model wrote."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def unanswered(items: Sequence[Json], reason: str) -> list[Json]:
    """Items of a request to which no answer began."""
    mark = {"status": "incomplete", "incomplete_details": {"reason": reason}}
    return [item | mark if item["type"] == "message" else item for item in items]


def cut(items: Sequence[Json], reason: str) -> list[Json]:
    """Items of an answer that is not whole; the last of them says why."""
    *before, last = items
    return [*before, last | {"status": "incomplete", "incomplete_details": {"reason": reason}}]


def _role(item: Json) -> str:
    return "system" if item["role"] in SYSTEM else item["role"]


def _message(role: str, content: list[Json], status: Status = "completed") -> Json:
    head = {"id": new_id("msg"), "type": "message", "status": status, "role": role}
    return head | {"content": content}


def _input_text(text: str) -> Json:
    return {"type": "input_text", "text": text}


def _call(raw: Any, status: Status) -> Json:
    call = as_object(raw)
    function = as_object(call.get("function"))
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": status,
        "call_id": call.get("id") or new_id("call"),
        "name": function.get("name") or "",
        "arguments": function.get("arguments") or "",
    }


def _content(parts: Sequence[Json]) -> str | list[Json]:
    """The content of a chat message: a text where there is nothing else."""
    read = [_chat_part(part) for part in parts]
    if len(read) == 1 and read[0]["type"] == "text":
        return read[0]["text"]
    return read or ""


def _chat_part(part: Json) -> Json:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"]} | _detail(part)}
    return {"type": "text", "text": part["refusal"] if part["type"] == "refusal" else part["text"]}


def _detail(part: Json) -> Json:
    return {} if part.get("detail", "auto") == "auto" else {"detail": part["detail"]}


def _of_message(message: Json, where: str) -> list[Json]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        call_id = _string(message, "tool_call_id", where)
        output = content if isinstance(content, str) else _stored(content, where, role)
        return [_output(call_id, output)]
    if role not in _ROLES:
        raise bad(f"{where}.role", f"a message of role `{role:.50}` cannot be kept")
    calls = [_call(call, "completed") for call in message.get("tool_calls") or ()]
    if role == "assistant" and not content:
        return calls
    return [_message(role, _stored(content, where, role)), *calls]


def _stored(content: Any, where: str, role: str) -> list[Json]:
    """The parts of a chat message as an item has them."""
    if content is None or isinstance(content, str):
        return [_text_part(content or "", role)]
    found: list[Json] = []
    for part in content:
        if part["type"] == "text" and isinstance(part.get("text"), str):
            found.append(_text_part(part["text"], role))
            continue
        image = part.get("image_url")
        url = image if isinstance(image, str) else as_object(image).get("url")
        if part["type"] != "image_url" or not isinstance(url, str):
            kind = f"{part['type']:.50}"
            raise bad(f"{where}.content", f"a part of type `{kind}` cannot be kept")
        detail = as_object(image).get("detail", "auto")
        found.append({"type": "input_image", "image_url": url, "detail": detail})
    return found


def _text_part(text: str, role: str) -> Json:
    return output_text(text) if role == "assistant" else _input_text(text)


def _output(call_id: str, output: Any) -> Json:
    head = {"id": new_id("fco"), "type": "function_call_output", "status": "completed"}
    return head | {"call_id": call_id, "output": output}


def _item(raw: Any, where: str) -> Json:
    item = as_object(raw)
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message":
        return _read_message(item, where)
    if kind == "function_call":
        function = {name: _string(item, name, where) for name in ("name", "arguments")}
        return _call({"id": _string(item, "call_id", where), "function": function}, "completed")
    if kind == "function_call_output":
        output = item.get("output")
        if not isinstance(output, str):
            output = _parts(output, f"{where}.output", "user")
        return _output(_string(item, "call_id", where), output)
    if kind == "reasoning":
        kept = {name: item[name] for name in ("content", "encrypted_content") if item.get(name)}
        summary = item.get("summary")
        summary = cast("list[Any]", summary) if isinstance(summary, list) else []
        return {"id": new_id("rs"), "type": "reasoning", "summary": summary} | kept
    if kind == "item_reference":
        raise bad(f"{where}.type", "references to items are not followed: give the item itself")
    known = "message, function_call, function_call_output and reasoning"
    raise bad(f"{where}.type", f"items are {known}, got {kind!r:.60}")


def _read_message(item: Json, where: str) -> Json:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise bad(f"{where}.role", f"one of {', '.join(_ROLES)}, got {role!r:.60}")
    if isinstance(content, str):
        parts = [_text_part(content, role)]
    else:
        parts = _parts(content, f"{where}.content", role)
    phase = item.get("phase")
    if phase not in (None, "commentary", "final_answer"):
        raise bad(f"{where}.phase", "`commentary` or `final_answer`")
    return _message(role, parts) | ({"phase": phase} if phase else {})


def _parts(raw: Any, where: str, role: str) -> list[Json]:
    if not isinstance(raw, list) or not raw:
        raise bad(where, "a text or a list of at least one part is required")
    parts = cast("list[Any]", raw)
    return [_part(as_object(one), f"{where}[{n}]", role) for n, one in enumerate(parts)]


def _part(part: Json, where: str, role: str) -> Json:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return _text_part(_string(part, "text", where), role)
    if kind == "refusal" and role == "assistant":
        return {"type": "refusal", "refusal": _string(part, "refusal", where)}
    if kind == "input_image" and role != "assistant":
        if part.get("file_id"):
            raise bad(f"{where}.file_id", "there are no files here: give `image_url`")
        detail = part.get("detail") or "auto"
        if detail not in _DETAILS:
            raise bad(f"{where}.detail", f"one of {', '.join(_DETAILS)}")
        url = _string(part, "image_url", where)
        return {"type": "input_image", "image_url": url, "detail": detail}
    raise bad(f"{where}.type", f"a part of type {kind!r:.60} is not served here")


def _string(item: Json, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise bad(f"{where}.{name}", "a text is required")
    return value
