"""BFCL: `question: [[turns], ...]` and `function: [...]`, prompts for tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.data import finish, turns
from dialoop.data.columns import RecordError
from dialoop.data.formats import Format
from dialoop.data.sample import Sample

if TYPE_CHECKING:
    from dialoop.data.columns import Row


class Bfcl(Format, frozen=True):
    """Questions that a function call should answer."""

    kind: Literal["bfcl"] = "bfcl"

    def detect(self, row: Row) -> bool:
        """A question of several rounds of turns."""
        rounds = row.peek("query")
        return isinstance(rounds, list) and bool(rounds) and isinstance(rounds[0], list)

    def read(self, row: Row) -> Sample:
        """A prompt of the first round; later rounds stay beside it as `later_rounds`."""
        first, *later = row.field("query")
        if not first:
            raise RecordError("empty question")
        messages = turns.read_turns(first)
        finish.check(messages)
        tools = turns.read_tools(row.field("function"))
        rounds = (("later_rounds", later),) if later else ()
        return Sample(messages=messages, tools=tools, extra=(*row.extra(), *rounds))
