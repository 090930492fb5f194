"""A whole completion out of the events of its stream, as far as they were delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dialoop.gateway.call import as_object

if TYPE_CHECKING:
    from dialoop.gateway.call import Json

_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")


class Gathered:
    """Events put together; what a non-streaming request would have got.

    Source: OpenAI's API reference of 2026, the chat completion chunk object.
    """

    def __init__(self) -> None:
        self._head: Json = {}
        self._choices: dict[int, Json] = {}
        self._usage: Json | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was delivered."""
        return not self._choices

    def add(self, event: Json) -> None:
        """Take an event."""
        if not self._head:
            self._head = {k: v for k, v in event.items() if k not in ("choices", "usage")}
        if event.get("usage"):
            self._usage = event["usage"]
        for choice in event.get("choices") or ():
            number = choice.get("index", 0)
            into = self._choices.get(number)
            if into is None:
                into = self._choices[number] = _new(choice, number)
            _merge(into, choice)

    def completion(self) -> Json:
        """The whole of it; `finish_reason` is None where the answer was cut."""
        head = dict(self._head)
        if head.get("object") == "chat.completion.chunk":
            head["object"] = "chat.completion"
        choices = [self._choices[number] for number in sorted(self._choices)]
        return head | {"choices": choices, "usage": self._usage}

    def choice(self) -> Json:
        """The first choice, as far as it came."""
        return self._choices[min(self._choices)] if self._choices else {}

    def message(self) -> Json:
        """The message of the first choice, as far as it came."""
        return self.choice().get("message", {})


def _new(choice: Json, number: int) -> Json:
    shell: Json = {"index": number, "logprobs": None, "finish_reason": None}
    if "delta" in choice:
        return shell | {"message": {"role": "assistant", "content": None}}
    return shell | {"text": ""}


def _merge(into: Json, choice: Json) -> None:
    if choice.get("finish_reason"):
        into["finish_reason"] = choice["finish_reason"]
    if choice.get("logprobs"):
        into["logprobs"] = _joined(into["logprobs"], choice["logprobs"])
    if "text" in into:
        into["text"] += choice.get("text") or ""
        return
    message, delta = into["message"], as_object(choice.get("delta"))
    for name in _TEXTS:
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    for call in delta.get("tool_calls") or ():
        _merge_call(message.setdefault("tool_calls", []), call)


def _merge_call(calls: list[Any], piece: Json) -> None:
    place = piece.get("index", len(calls))
    while len(calls) <= place:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[place]
    call["id"] = piece.get("id") or call["id"]
    function = as_object(piece.get("function"))
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _joined(old: Json | None, new: Json) -> Json:
    """Log-probabilities one after the other, field by field."""
    joined = dict(old or {})
    for name, values in new.items():
        had = joined.get(name)
        both = isinstance(values, list) and isinstance(had, list)
        joined[name] = [*cast("list[Any]", had), *cast("list[Any]", values)] if both else values
    return joined
