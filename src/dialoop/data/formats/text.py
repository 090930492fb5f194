"""Text for pre-training: `text`, `content`, or an answer without a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.data import turns
from dialoop.data.columns import RecordError
from dialoop.data.formats import Format
from dialoop.data.sample import Sample

if TYPE_CHECKING:
    from dialoop.data.columns import Row

_FIELDS = ("text", "content", "response")
_CARRIERS = (
    "messages", "conversations", "instruction", "query", "chosen", "rejected", "chosen_messages",
    "positive", "negative", "sentence1", "input", "output",
)  # fmt: skip


class PlainText(Format, frozen=True):
    """A run of text."""

    kind: Literal["text"] = "text"

    def detect(self, row: Row) -> bool:
        """Text and no question."""
        texts = any(isinstance(row.peek(field), str) for field in _FIELDS)
        return texts and not row.has(*_CARRIERS)

    def read(self, row: Row) -> Sample:
        """Text."""
        named = next(field for field in _FIELDS if isinstance(row.peek(field), str))
        text = turns.body(row.field(named))
        if not text.strip():
            raise RecordError("empty text")
        return Sample(text=text, extra=row.extra())
