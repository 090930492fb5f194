"""KdConv: `messages: [{message, attrs}, ...]`, two speakers in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.chat.message import message
from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class KdConv(Format, frozen=True):
    """Talk about a subject; the second speaker is the assistant."""

    kind: Literal["kdconv"] = "kdconv"

    def detect(self, row: Row) -> bool:
        """Turns that name no role."""
        said = row.peek("messages")
        return (
            isinstance(said, list)
            and bool(said)
            and all(isinstance(t, dict) and "message" in t and "role" not in t for t in said)
        )

    def read(self, row: Row) -> Sample:
        """A dialogue."""
        messages = tuple(
            message("assistant" if number % 2 else "user", turns.body(turn["message"]))
            for number, turn in enumerate(row.field("messages"))
        )
        return finish.dialogue(row, messages)
