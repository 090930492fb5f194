"""Estimated counts for models whose tokenizer is not at hand, learned from what engines report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson

from dialoop.gateway.context.images import internvl_tokens
from dialoop.gateway.context.turns import images_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Json = dict[str, Any]
MESSAGE_TOKENS = 8
"""What templates write around a message."""
FRAME_TOKENS = 40
"""What templates write once, such as a system message of their own."""
FIRST = (0.5, 0.67)
"""Tokens a byte before anything is learned, of ASCII and of other text: more than any common
tokenizer takes."""
DECAY = 0.02
"""How far a count that is lower pulls the ratio down; one that is higher is taken at once."""
PURE = 0.95
"""Share of bytes of one kind from which a request tells about that kind."""


class EstimateCounter:
    """Counts bytes, and knows how many tokens this model made of bytes.

    Args:
        window_tokens: tokens that the model has for prompt and answer.
        margin: what estimates are multiplied with.
        image_tokens: the rule for images.
    """

    is_exact = False

    def __init__(
        self,
        window_tokens: int | None,
        *,
        margin: float = 1.1,
        image_tokens: Callable[[str], int] = internvl_tokens,
    ) -> None:
        self.window_tokens = window_tokens
        self._margin = margin
        self._image_tokens = image_tokens
        self._ratios = list(FIRST)

    def learn(self, messages: Sequence[Json], prompt_tokens: int) -> None:
        """Take in what the engine counted for a prompt; one of mixed text or images tells nothing.

        Args:
            messages: those that were sent, without tools.
            prompt_tokens: the engine's `usage.prompt_tokens`.
        """
        sizes = [_sizes(_written(message)) for message in messages]
        total = [sum(kind) for kind in zip(*sizes, strict=True)]
        kind = 0 if total[0] >= total[1] else 1
        is_pure = total[kind] >= max(200, PURE * sum(total))
        if not is_pure or any(images_of(message) for message in messages):
            return
        seen = prompt_tokens / sum(total)
        ratio = self._ratios[kind]
        self._ratios[kind] = max(seen, ratio + DECAY * (seen - ratio))

    def text(self, text: str) -> int:
        """Tokens of plain text."""
        return math.ceil(self._margin * sum(map(float.__mul__, self._ratios, _sizes(text))))

    def turn(self, messages: Sequence[Json]) -> tuple[int, ...]:
        """Tokens of each message of a turn."""
        return tuple(map(self._message, messages))

    def fixed(self, system: Sequence[Json], tools: Sequence[Json]) -> int:
        """Tokens of all that is not a turn."""
        listed = self.text(orjson.dumps(tools).decode()) if tools else 0
        return FRAME_TOKENS + listed + sum(map(self._message, system))

    def whole(self, messages: Sequence[Json], tools: Sequence[Json]) -> int:
        """Tokens of the prompt."""
        return self.fixed(messages, tools)

    def _message(self, message: Json) -> int:
        pictures = sum(map(self._image_tokens, images_of(message)))
        return self.text(_written(message)) + pictures + MESSAGE_TOKENS


def _written(message: Json) -> str:
    """What a template may write of a message."""
    parts = [text_of(message), message.get("reasoning_content") or ""]
    if calls := message.get("tool_calls"):
        parts.append(orjson.dumps(calls).decode())
    return "".join(part for part in parts if isinstance(part, str))


def _sizes(text: str) -> tuple[float, float]:
    """Bytes of ASCII, and of other characters."""
    plain = len(text.encode("ascii", "ignore"))
    return float(plain), float(len(text.encode("utf-8", "ignore")) - plain)
