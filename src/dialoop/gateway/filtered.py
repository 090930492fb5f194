"""Completions under a filter: every text of every choice goes through a stream of its own.

Log-probabilities tell the tokens of a text, so they are held back and dropped with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dialoop.gateway.call import Json, as_object
from dialoop.gateway.guard import Blocked

if TYPE_CHECKING:
    from dialoop.gateway.guard import Channel, Guard, TextGuard

BLOCKED = "content_filter"
_CHANNELS: dict[str, Channel] = {
    "text": "content",
    "content": "content",
    "refusal": "content",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
}
_LEAKS = ("logprobs", "token_ids", "prompt_logprobs")
"""Fields of a choice that tell its tokens."""

_ARGUMENTS = (("function", "arguments"), ("custom", "input"))
"""Where the calls of tools have text."""
_Key = tuple[int, str, int]
"""A choice, a field, and which of its calls."""


class Filter:
    """The texts of one answer.

    Args:
        guard: the filter.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._streams: dict[_Key, TextGuard] = {}
        self._held: dict[_Key, int] = {}
        """Characters that went in and have not come out."""
        self._ended: set[int] = set()
        self.blocked: Blocked | None = None
        """The first thing that did not pass."""

    @property
    def num_ended(self) -> int:
        """Choices that were stopped."""
        return len(self._ended)

    def chunk(self, event: Json) -> bool:
        """Filter one event of a stream, in place; false where nothing of it is left to show."""
        choices = event.get("choices") or ()
        left = [choice for choice in choices if self._choice(choice, "delta")]
        if choices:
            event["choices"] = left
        return bool(left) or not choices

    def whole(self, answer: Json) -> None:
        """Filter a whole answer, in place."""
        for choice in answer.get("choices") or ():
            self._choice(choice, "message")

    def _choice(self, choice: Json, part: str) -> bool:
        number = choice.get("index", 0)
        if number in self._ended:
            return False
        is_last = part == "message" or bool(choice.get("finish_reason"))
        texts = choice
        if "text" not in choice:
            texts = choice[part] = as_object(choice.get(part))
        try:
            has_changed = self._pass(number, texts)
            if is_last:
                has_changed |= self._finish(number, texts)
        except Blocked as blocked:
            self.blocked = self.blocked or blocked
            self._ended.add(number)
            _empty(texts)
            choice["finish_reason"] = BLOCKED
            has_changed = True
        if has_changed:
            for name in _LEAKS:
                choice.pop(name, None)
        return True

    def _pass(self, number: int, texts: Json) -> bool:
        """Whether any text is not what it was, or not all of it has passed so far."""
        has_changed = False
        for name, channel in _CHANNELS.items():
            given = texts.get(name)
            if isinstance(given, list):  # parts
                for one in cast("list[Any]", given):
                    has_changed |= self._field(as_object(one), "text", (number, name, 0), channel)
            else:
                has_changed |= self._field(texts, name, (number, name, 0), channel)
        called = as_object(texts.get("function_call"))
        has_changed |= self._field(called, "arguments", (number, "function_call", 0), "arguments")
        for place, item in enumerate(texts.get("tool_calls") or ()):
            call = as_object(item)
            place = call.get("index", place)
            for kind, name in _ARGUMENTS:
                given = as_object(call.get(kind))
                has_changed |= self._field(given, name, (number, kind, place), "arguments")
        return has_changed

    def _field(self, texts: Json, name: str, key: _Key, channel: Channel) -> bool:
        """Filter one text, in place; whether anything of it was changed or is held back."""
        given = texts.get(name)
        if not isinstance(given, str):
            return False
        if key not in self._streams:
            self._streams[key] = self._guard.open(channel)
        shown = texts[name] = self._streams[key].feed(given)
        held = self._held[key] = self._held.get(key, 0) + len(given) - len(shown)
        return held != 0 or shown != given

    def _finish(self, number: int, texts: Json) -> bool:
        """Add what was held back to its fields."""
        has_changed = False
        for (owner, name, place), stream in self._streams.items():
            if owner != number or not (rest := stream.finish()):
                continue
            has_changed = True
            if name in _CHANNELS:
                _append(texts, name, rest)
            elif name == "function_call":
                _append(texts.setdefault(name, {}), "arguments", rest)
            else:
                calls: list[Json] = texts.setdefault("tool_calls", [])
                call = next((c for n, c in enumerate(calls) if c.get("index", n) == place), None)
                if call is None:
                    call = cast("Json", {"index": place})
                    calls.append(call)
                _append(call.setdefault(name, {}), dict(_ARGUMENTS)[name], rest)
        return has_changed


def _append(texts: Json, name: str, rest: str) -> None:
    given = texts.get(name)
    if isinstance(given, list):
        texts[name] = [*cast("list[Any]", given), {"type": "text", "text": rest}]
    else:
        texts[name] = (given or "") + rest


def _empty(texts: Json) -> None:
    for name in _CHANNELS:
        if texts.get(name):
            texts[name] = ""
    for name in ("tool_calls", "function_call"):
        texts.pop(name, None)
