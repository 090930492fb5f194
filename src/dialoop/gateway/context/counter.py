"""The contract of counters: tokens of a turn, of what is around turns, and of a whole prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]
PROBE: Json = {"role": "user", "content": "hi"}


class Counter(Protocol):
    """Counts tokens for one model."""

    @property
    def is_exact(self) -> bool:
        """Whether `whole` is what the engine will count, to the token."""
        ...

    @property
    def window_tokens(self) -> int | None:
        """Tokens that the model has for prompt and answer; None when that is not known."""
        ...

    def text(self, text: str) -> int:
        """Tokens of plain text."""
        ...

    def turn(self, messages: Sequence[Json]) -> tuple[int, ...]:
        """Tokens of each message of a turn, in the template's writing.

        Raises:
            ApiError: the messages cannot be read, or the template refuses them.
        """
        ...

    def fixed(self, system: Sequence[Json], tools: Sequence[Json]) -> int:
        """Tokens of all that is not a turn: system messages, tools, what the template adds.

        Raises:
            ApiError: as `turn`.
        """
        ...

    def whole(self, messages: Sequence[Json], tools: Sequence[Json]) -> int:
        """Tokens of the prompt.

        Raises:
            ApiError: as `turn`.
        """
        ...
