"""A kept answer as a new response: one document, or the events of a stream that say the same."""

from __future__ import annotations

from typing import Any, cast

import orjson

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


def whole(value: bytes, request_id: str, created: int) -> bytes:
    """The completion under an id and time of its own.

    Args:
        value: the completion that was kept.
        request_id: of the response.
        created: seconds since 1970.
    """
    completion: Json = orjson.loads(value)
    completion |= {"id": request_id, "created": created}
    return orjson.dumps(completion)


def events(value: bytes, request_id: str, created: int, *, has_usage: bool) -> list[bytes]:
    """The completion as a stream, `[DONE]` included.

    Each choice is opened by its role, says all in one event and ends with its finish reason.

    Args:
        value: the completion that was kept.
        request_id: of the response.
        created: seconds since 1970.
        has_usage: whether an event with token counts was asked for.
    """
    completion: Json = orjson.loads(value)
    is_chat = completion["object"] == "chat.completion"
    head = {name: one for name, one in completion.items() if name not in ("choices", "usage")}
    head |= {"id": request_id, "created": created}
    if is_chat:
        head["object"] = "chat.completion.chunk"
    if has_usage:
        head["usage"] = None
    found: list[bytes] = []
    for choice in cast("list[Json]", completion["choices"]):
        parts = _chat(choice) if is_chat else _text(choice)
        found += (_event(head | {"choices": [part]}) for part in parts)
    if has_usage:
        found.append(_event(head | {"choices": [], "usage": completion.get("usage")}))
    found.append(DONE)
    return found


def _chat(choice: Json) -> list[Json]:
    message = cast("Json", choice["message"])
    said = {name: one for name, one in message.items() if name != "role" and one is not None}
    if calls := said.get("tool_calls"):
        said["tool_calls"] = [{"index": n} | call for n, call in enumerate(calls)]
    rest = {name: one for name, one in choice.items() if name != "message"}
    open_ = {"index": choice["index"], "logprobs": None, "finish_reason": None}
    return [
        open_ | {"delta": {"role": message["role"], "content": ""}},
        open_ | {"delta": said, "logprobs": choice.get("logprobs")},
        rest | {"delta": {}, "logprobs": None},
    ]


def _text(choice: Json) -> list[Json]:
    return [choice | {"finish_reason": None}, choice | {"text": "", "logprobs": None}]


def _event(document: Json) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
