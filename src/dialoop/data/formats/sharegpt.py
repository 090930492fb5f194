"""ShareGPT: `conversations: [{from, value}, ...]`, with LLaMA-Factory's chosen and rejected."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from dialoop.data import finish, turns
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample


class ShareGpt(Format, frozen=True):
    """Turns under `conversations`."""

    kind: Literal["sharegpt"] = "sharegpt"

    def detect(self, row: Row) -> bool:
        """Turns that name who speaks, in `conversations` or `conversation`."""
        return turns.is_turns(_decoded(row.peek("conversations")))

    def read(self, row: Row) -> Sample:
        """A dialogue, or a preference where chosen and rejected answers stand beside it."""
        messages = turns.read_turns(row.field("conversations"))
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
