"""Question and answer: `query`/`response` and the like, with `history`; `prompt`/`completion`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample

_ANSWERS = ("response", "output", "solution", "text", "content")
_CARRIERS = ("messages", "conversations", "instruction")


class Query(Format, frozen=True):
    """One question, and its answer where there is one."""

    kind: Literal["query"] = "query"

    def detect(self, row: Row) -> bool:
        """A question with an answer, or nothing but a question."""
        if not row.has("query") or row.has("chosen", "positive", "negative", "function"):
            return False
        if _is_nested(row.peek("query")) or finish.is_ranking(row):
            return False
        answered = row.names("response") or row.names("output")
        return bool(answered) or not row.has(*_CARRIERS)

    def read(self, row: Row) -> Sample:
        """A dialogue, or a prompt."""
        messages = turns.history(row.field("history")) + turns.question(row.field("query"))
        named = next((f for f in _ANSWERS if row.names(f)), None)
        if named:
            messages += turns.answer(row.field(named))
        return finish.dialogue(row, messages)


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)
