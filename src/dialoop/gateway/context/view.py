"""What a plan looks like: every part of a prompt, its tokens, and why it is sent or is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Fate = Literal["kept", "dropped", "summarized"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of what was asked for."""

    name: str
    """`system`, `pins`, `tools`, `summary`, or `messages[N]` by its place in the request."""
    tokens: int
    """Of a part that is not sent: what it would have taken."""
    fate: Fate
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary, to be stored beside its conversation."""

    text: str
    num_turns: int
    """The first turns of the dialogue, which it stands for."""
    digest: bytes
    """Of their messages: a dialogue that was edited since is told by it."""


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """What is sent of a dialogue."""

    messages: tuple[Json, ...]
    """The messages to send."""
    parts: tuple[Part, ...]
    tokens: int
    """Of the prompt: counted as a whole, not summed up."""
    answer_tokens: int
    """Left for the answer."""
    window_tokens: int
    is_exact: bool
    """False where the model's tokenizer is not at hand: tokens are then estimates."""
    strategy: str
    summary: Summary | None = None
    """What was sent as the summary, for the conversation's store."""
    notes: tuple[str, ...] = ()
    """What did not go as asked, such as a summary that failed."""

    def count(self, fate: Fate) -> int:
        """Messages of the request with this fate, system messages among them."""
        return sum(part.fate == fate for part in self.parts if part.name[-1] == "]")

    @property
    def header(self) -> str:
        """The value of `x-dialoop-context`."""
        fields: dict[str, Any] = {"kept": self.count("kept"), "dropped": self.count("dropped")}
        if gone := self.count("summarized"):
            fields["summarized"] = gone
        fields |= {"tokens": self.tokens, "window": self.window_tokens}
        if not self.is_exact:
            fields["estimate"] = 1
        return ";".join(f"{name}={value}" for name, value in fields.items())

    def to_json(self) -> Json:
        """The answer of `POST /v1/context`."""
        return {
            "object": "context.plan",
            "strategy": self.strategy,
            "window_tokens": self.window_tokens,
            "tokens": self.tokens,
            "answer_tokens": self.answer_tokens,
            "is_estimate": not self.is_exact,
            "parts": [
                {"part": it.name, "tokens": it.tokens, "fate": it.fate, "reason": it.reason}
                for it in self.parts
            ],
            "notes": list(self.notes),
            "messages": list(self.messages),
        }
