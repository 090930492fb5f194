"""Completions under a filter: every text of every choice goes through a stream of its own.

Log-probabilities tell the tokens of a text, so they are held back and dropped with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


class Filter:
    """The texts of one answer.

    Args:
        guard: the filter.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._streams: dict[tuple[int, str, int], TextGuard] = {}
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
        texts = choice if "text" in choice else as_object(choice.get(part))
        is_last = part == "message" or bool(choice.get("finish_reason"))
        try:
            has_changed = self._pass(number, texts, is_last=is_last)
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

    def _pass(self, number: int, texts: Json, *, is_last: bool) -> bool:
        """Whether any text is not what it was."""
        has_changed = False
        for name, channel in _CHANNELS.items():
            given = texts.get(name)
            if isinstance(given, str):
                texts[name] = self._stream(number, name, 0, channel).feed(given)
                has_changed |= texts[name] != given
        for place, call in enumerate(texts.get("tool_calls") or ()):
            function = as_object(as_object(call).get("function"))
            given = function.get("arguments")
            if isinstance(given, str):
                stream = self._stream(number, "arguments", call.get("index", place), "arguments")
                function["arguments"] = stream.feed(given)
                has_changed |= function["arguments"] != given
        return self._finish(number, texts) or has_changed if is_last else has_changed

    def _finish(self, number: int, texts: Json) -> bool:
        has_changed = False
        for (owner, name, place), stream in self._streams.items():
            if owner != number or not (rest := stream.finish()):
                continue
            has_changed = True
            if name != "arguments":
                texts[name] = (texts.get(name) or "") + rest
                continue
            calls: list[Any] = texts.setdefault("tool_calls", [])
            found = [c for n, c in enumerate(calls) if c.get("index", n) == place]
            if found:
                found[0]["function"]["arguments"] += rest
            else:
                calls.append({"index": place, "function": {"arguments": rest}})
        return has_changed

    def _stream(self, number: int, name: str, place: int, channel: Channel) -> TextGuard:
        key = (number, name, place)
        if key not in self._streams:
            self._streams[key] = self._guard.open(channel)
        return self._streams[key]


def _empty(texts: Json) -> None:
    for name in _CHANNELS:
        if isinstance(texts.get(name), str):
            texts[name] = ""
    texts.pop("tool_calls", None)
