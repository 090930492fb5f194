"""CrossWOZ: `messages` between `usr` and `sys`, with annotations that training does not need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.chat.message import message
from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class CrossWoz(Format, frozen=True):
    """Service dialogues between a user and a system."""

    kind: Literal["crosswoz"] = "crosswoz"

    def detect(self, row: Row) -> bool:
        """Roles `usr` and `sys`."""
        said = row.peek("messages")
        return turns.is_turns(said) and all(t.get("role") in {"usr", "sys"} for t in said)

    def read(self, row: Row) -> Sample:
        """A dialogue, in which `sys` is the assistant."""
        messages = tuple(
            message("user" if turn["role"] == "usr" else "assistant", turns.body(turn["content"]))
            for turn in row.field("messages")
        )
        return finish.dialogue(row, messages)
