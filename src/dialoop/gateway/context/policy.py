"""What can be set about the context: strategy, window, room for the answer, summary."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dialoop.core.schema import Spec

Strategy = Literal["refuse", "drop", "summarize"]


class ContextPolicy(Spec, frozen=True):
    """How a dialogue that is longer than the model's window is sent."""

    strategy: Strategy = "summarize"
    """`refuse` answers with status 400; `drop` leaves the oldest turns out; `summarize` leaves them
    out, too, and sends a summary of them."""
    window_tokens: int | None = Field(default=None, ge=64)
    """Prompt and answer together, in tokens; the model's own window unless given."""
    answer_tokens: int | None = Field(default=None, ge=1)
    """Tokens kept free for the answer of a request without `max_tokens`; a quarter of the window,
    at most 2048, unless given. Where the newest turns need it, less is kept."""
    keep_recent_turns: int = Field(default=1, ge=1)
    """Newest turns that are always sent; a request where they do not fit is refused. A turn is a
    message of the user with all that follows up to the next one."""
    summary_tokens: int | None = Field(default=None, ge=64)
    """Tokens for the summary; two fifths of the window, at most
    4096, unless given."""
    image_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an image; computed from its size as InternVL does unless given."""

    def answer_room(self, window: int) -> int:
        """Tokens kept free for an answer of no asked length."""
        return self.answer_tokens or max(1, min(window // 4, 2048))

    def summary_room(self, window: int) -> int:
        """Tokens that a summary may have; 0 where none is written."""
        if self.strategy != "summarize":
            return 0
        return self.summary_tokens or max(64, min(window * 2 // 5, 4096))
