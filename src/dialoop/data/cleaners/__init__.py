"""Cleaners: each looks at one sample and keeps, changes or drops it, with a reason that counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dialoop.chat.message import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.chat.message import Message
    from dialoop.data.sample import Sample


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a sample."""

    sample: Sample
    outcome: Literal["kept", "changed", "duplicates", "filtered"] = "kept"
    reason: str = ""
    """Empty when nothing is to be counted."""
    detail: str = ""


class Cleaner(ABC):
    """One way of cleaning; it may remember what it has seen."""

    @abstractmethod
    def look(self, sample: Sample) -> Verdict:
        """Decide about one sample."""


def turns(sample: Sample) -> tuple[Message, ...]:
    """Every message of a sample, worse answers and documents included."""
    out = [*sample.messages, *sample.query]
    for dialogues in (sample.rejected, sample.positives, sample.negatives):
        for dialogue in dialogues:
            out += dialogue
    return tuple(out)


def whole_text(sample: Sample) -> str:
    """All text of a sample, a line a turn."""
    if sample.text is not None:
        return sample.text
    return "\n".join(f"{item.thinking or ''}{item.text}" for item in turns(sample))


def rewrite(sample: Sample, change: Callable[[str], str]) -> Sample:
    """The sample with every text of it passed through `change`; tool calls stay as they are."""

    def dialogue(items: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(
            replace(
                item,
                parts=tuple(Text(change(p.text)) if isinstance(p, Text) else p for p in item.parts),
                thinking=None if item.thinking is None else change(item.thinking),
            )
            for item in items
        )

    return replace(
        sample,
        messages=dialogue(sample.messages),
        text=None if sample.text is None else change(sample.text),
        rejected=tuple(map(dialogue, sample.rejected)),
        query=dialogue(sample.query),
        positives=tuple(map(dialogue, sample.positives)),
        negatives=tuple(map(dialogue, sample.negatives)),
    )
