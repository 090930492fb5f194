"""Preferences: `chosen` and `rejected` as text, turns or transcripts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from dialoop.chat.message import message
from dialoop.data import finish, turns
from dialoop.data.columns import RecordError
from dialoop.data.formats import Format

if TYPE_CHECKING:
    from dialoop.chat.message import Message
    from dialoop.data.columns import Row
    from dialoop.data.sample import Sample

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


class Preference(Format, frozen=True):
    """A better and a worse answer."""

    kind: Literal["preference"] = "preference"

    def detect(self, row: Row) -> bool:
        """Both sides, and no dialogue beside them that they belong to."""
        if row.has("chosen_messages") and row.has("rejected_messages"):
            return True
        if not (row.has("chosen") and row.has("rejected")) or row.has("conversations"):
            return False
        chosen = row.peek("chosen")
        return not row.has("messages") or (turns.is_turns(chosen) and len(chosen) > 1)

    def read(self, row: Row) -> Sample:
        """A preference."""
        if row.has("chosen_messages"):
            chosen, rejected = row.field("chosen_messages"), row.field("rejected_messages")
        else:
            chosen, rejected = row.field("chosen"), row.field("rejected")
        if whole := _whole(chosen):
            if row.has("messages"):
                row.field("messages")
            if row.has("query"):
                row.field("query")
            worse = _whole(rejected)
            if not worse:
                raise RecordError("chosen is a whole dialogue and rejected is not")
            return finish.preference(row, whole, (finish.ending(whole, worse),))
        prompt = turns.history(row.field("history"))
        prompt += finish.instruction(row) if row.has("instruction", "input") else _asked(row)
        messages, endings = finish.pair(prompt, chosen, rejected)
        return finish.preference(row, messages, endings)


def _asked(row: Row) -> tuple[Message, ...]:
    if not row.has("query"):
        raise RecordError("chosen and rejected without a prompt")
    return turns.question(row.field("query"))


def _whole(value: Any) -> tuple[Message, ...]:
    """A dialogue with its question: turns, or a `Human:`/`Assistant:` transcript."""
    if turns.is_turns(value) and len(value) > 1:
        messages = turns.read_turns(value)
        return messages if messages[0].role != "assistant" else ()
    if isinstance(value, str) and value.lstrip().startswith("Human:") and "Assistant:" in value:
        return _transcript(value)
    return ()


def _transcript(text: str) -> tuple[Message, ...]:
    """Turns of a transcript; what has no answer at its end is an empty answer."""
    pieces = _SPEAKER.split("\n\n" + text.strip())[1:]
    roles: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        message(roles[who], said.strip())
        for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    )
