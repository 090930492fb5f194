"""Rounds: `conversation: [{human, assistant}, ...]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dialoop.chat.message import message
from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.chat.message import Message
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample

_ASKS = ("human", "user", "input", "query", "question")
_ANSWERS = ("assistant", "bot", "gpt", "output", "response", "answer")


class Pairs(Format, frozen=True):
    """Rounds of a question and its answer."""

    kind: Literal["pairs"] = "pairs"

    def detect(self, row: Row) -> bool:
        """A list of objects with one key for each side."""
        rounds = row.peek("conversations")
        return isinstance(rounds, list) and bool(rounds) and all(_is_round(r) for r in rounds)

    def read(self, row: Row) -> Sample:
        """A dialogue."""
        messages: list[Message] = []
        for item in row.field("conversations"):
            if isinstance(item.get("system"), str):
                messages.append(message("system", item["system"]))
            messages += turns.question(_side(item, _ASKS))
            messages += turns.answer(_side(item, _ANSWERS))
        return finish.dialogue(row, tuple(messages))


def _is_round(item: Any) -> bool:
    return isinstance(item, dict) and any(k in item for k in _ASKS) and "role" not in item


def _side(item: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None)
