"""MultiWOZ: `log: [{text, metadata}, ...]`, user and system in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.chat.message import message
from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class MultiWoz(Format, frozen=True):
    """Booking dialogues."""

    kind: Literal["multiwoz"] = "multiwoz"

    def detect(self, row: Row) -> bool:
        """A log of texts."""
        log = row.get("log")
        return (
            isinstance(log, list)
            and bool(log)
            and all(isinstance(t, dict) and "text" in t for t in log)
        )

    def read(self, row: Row) -> Sample:
        """A dialogue; what the log says of states is left in the source."""
        messages = tuple(
            message("assistant" if number % 2 else "user", turns.body(turn["text"]))
            for number, turn in enumerate(row.use("log"))
        )
        return finish.dialogue(row, messages)
