"""Retrieval: a query with positive and negative documents; sentence pairs with a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dialoop.chat.message import message
from dialoop.data import turns
from dialoop.data.columns import RecordError
from dialoop.data.formats import Format
from dialoop.data.sample import Sample

if TYPE_CHECKING:
    from dialoop.chat.message import Message
    from dialoop.data.columns import Row


class Retrieval(Format, frozen=True):
    """What is searched for, and what should and should not be found."""

    kind: Literal["retrieval"] = "retrieval"

    def detect(self, row: Row) -> bool:
        """Positives or negatives, or two sentences."""
        return row.has("positive", "negative") or (row.has("sentence1") and row.has("sentence2"))

    def read(self, row: Row) -> Sample:
        """A query and its documents."""
        if row.has("sentence1"):
            query = turns.question(row.field("sentence1"))
            positives = (turns.question(row.field("sentence2")),)
            return Sample(query=query, positives=positives, score=_score(row), extra=row.extra())
        asked = row.field("messages") if row.has("messages") else row.field("query")
        query = turns.question(asked)
        positives, negatives = _documents(row.field("positive")), _documents(row.field("negative"))
        if not positives:
            raise RecordError("no positive document")
        score = _score(row) if row.has("score") else None
        return Sample(
            query=query, positives=positives, negatives=negatives, score=score, extra=row.extra()
        )


def _documents(raw: Any) -> tuple[tuple[Message, ...], ...]:
    if raw is None or raw in ("", []):
        return ()
    items = [raw] if isinstance(raw, str) or turns.is_turns(raw) else raw
    if not isinstance(items, list):
        raise RecordError("documents are neither text nor a list", type(items).__name__)
    return tuple(_document(item) for item in items)


def _document(item: Any) -> tuple[Message, ...]:
    if turns.is_turns(item):
        return turns.read_turns(item)
    text = turns.body(item)
    if not text.strip():
        raise RecordError("empty document")
    return (message("user", text),)


def _score(row: Row) -> float | None:
    value = row.field("score") if row.has("score") else row.field("label")
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RecordError("a score is not a number", repr(value)) from error
