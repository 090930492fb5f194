"""Rankings: a question and a list of answers, best first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.data import finish, turns
from dialoop.data.columns import RecordError
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class Ranking(Format, frozen=True):
    """Two or more answers to one question."""

    kind: Literal["ranking"] = "ranking"

    def detect(self, row: Row) -> bool:
        """An output that is a list of texts."""
        return finish.is_ranking(row) and row.has("instruction", "query")

    def read(self, row: Row) -> Sample:
        """A preference with several worse answers."""
        asked = finish.instruction(row) if row.has("instruction") else None
        prompt = turns.history(row.field("history"))
        prompt += asked if asked is not None else turns.question(row.field("query"))
        best, *rest = row.field("output" if row.has("output") else "response")
        worse = [text for text in dict.fromkeys(rest) if text != best]
        if not worse:
            raise RecordError("chosen and rejected are the same")
        messages, endings = finish.pair(prompt, best, worse)
        return finish.preference(row, messages, endings)
