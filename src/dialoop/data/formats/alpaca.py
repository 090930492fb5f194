"""Alpaca: `instruction`, `input`, `output`, with `history` and `system`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class Alpaca(Format, frozen=True):
    """An instruction, what it applies to, and the output."""

    kind: Literal["alpaca"] = "alpaca"

    def detect(self, row: Row) -> bool:
        """An instruction, or input and output."""
        if row.has("chosen", "positive", "negative"):
            return False
        if finish.is_ranking(row):
            return False
        answered = row.names("output") or row.names("response")
        return row.has("instruction") or (row.has("input") and bool(answered))

    def read(self, row: Row) -> Sample:
        """A dialogue; a prompt where the record has no output column."""
        messages = turns.history(row.field("history")) + finish.instruction(row)
        named = next((f for f in ("output", "response") if row.names(f)), None)
        if named:
            messages += turns.answer(row.field(named))
        return finish.dialogue(row, messages)
