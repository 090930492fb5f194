"""Messages: `messages: [{role, content}, ...]`, spelt like OpenAI, Anthropic or ms-swift."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class Messages(Format, frozen=True):
    """A list of turns with roles."""

    kind: Literal["messages"] = "messages"

    def detect(self, row: Row) -> bool:
        """Turns that name roles, in `messages`."""
        if row.has("positive", "negative") or _is_full_pair(row):
            return False
        return _speaks(_decoded(row.peek("messages")))

    def read(self, row: Row) -> Sample:
        """A dialogue."""
        messages = turns.read_turns(row.field("messages"))
        if row.has("chosen") and row.has("rejected"):
            messages, worse = finish.pair(messages, row.field("chosen"), row.field("rejected"))
            return finish.preference(row, messages, worse)
        return finish.dialogue(row, messages)


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return None
    return value


def _speaks(value: Any) -> bool:
    """Turns, but not those of a data set that has a layout of its own."""
    return turns.is_turns(value) and not any(t.get("role") in {"usr", "sys"} for t in value)


def _is_full_pair(row: Row) -> bool:
    """`chosen` and `rejected` hold the whole dialogue, so that `messages` only repeats it."""
    chosen = row.peek("chosen")
    return row.has("rejected") and turns.is_turns(chosen) and len(chosen) > 1
