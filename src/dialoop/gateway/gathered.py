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
        self._calls: dict[tuple[int, int], Json] = {}
        """Calls of tools by choice and by their index there."""
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
            self._merge(number, into, choice)

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

    def _merge(self, number: int, into: Json, choice: Json) -> None:
        if choice.get("finish_reason"):
            into["finish_reason"] = choice["finish_reason"]
        if choice.get("logprobs"):
            into["logprobs"] = _joined(into["logprobs"], choice["logprobs"])
        if "text" in into:
            into["text"] += choice.get("text") or ""
            return
        message, delta = into["message"], as_object(choice.get("delta"))
        for name in _TEXTS:
            if isinstance(delta.get(name), str):
                message[name] = (message.get(name) or "") + delta[name]
        if delta.get("function_call"):
            into_call = message.setdefault("function_call", {"name": "", "arguments": ""})
            _merge_function(into_call, as_object(delta["function_call"]))
        for piece in delta.get("tool_calls") or ():
            self._merge_call(number, message.setdefault("tool_calls", []), as_object(piece))

    def _merge_call(self, number: int, calls: list[Json], piece: Json) -> None:
        place = piece.get("index", len(calls))
        call = self._calls.get((number, place))
        if call is None:
            function = {"name": "", "arguments": ""}
            call = self._calls[number, place] = {"id": "", "type": "function", "function": function}
            calls.append(call)
        call["id"] = piece.get("id") or call["id"]
        _merge_function(call["function"], as_object(piece.get("function")))


def _new(choice: Json, number: int) -> Json:
    shell: Json = {"index": number, "logprobs": None, "finish_reason": None}
    if "delta" in choice:
        return shell | {"message": {"role": "assistant", "content": None}}
    return shell | {"text": ""}


def _merge_function(into: Json, piece: Json) -> None:
    for name in ("name", "arguments"):
        into[name] = into.get(name, "") + (piece.get(name) or "")


def _joined(old: Json | None, new: Json) -> Json:
    """Log-probabilities one after the other, field by field."""
    joined = dict(old or {})
    for name, values in new.items():
        had = joined.get(name)
        both = isinstance(values, list) and isinstance(had, list)
        joined[name] = [*cast("list[Any]", had), *cast("list[Any]", values)] if both else values
    return joined
