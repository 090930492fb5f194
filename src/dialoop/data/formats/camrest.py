"""CamRest: `dial: [{usr: {transcript}, sys: {sent}}, ...]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.chat.message import Message
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class CamRest(Format, frozen=True):
    """Restaurant dialogues."""

    kind: Literal["camrest"] = "camrest"

    def detect(self, row: Row) -> bool:
        """Rounds of `usr` and `sys`."""
        rounds = row.get("dial")
        return (
            isinstance(rounds, list)
            and bool(rounds)
            and all(
                isinstance(r, dict)
                and isinstance(r.get("usr"), dict)
                and isinstance(r.get("sys"), dict)
                for r in rounds
            )
        )

    def read(self, row: Row) -> Sample:
        """A dialogue."""
        messages: list[Message] = []
        for item in row.use("dial"):
            messages += turns.question(item["usr"].get("transcript"))
            messages += turns.answer(item["sys"].get("sent"))
        return finish.dialogue(row, tuple(messages))
