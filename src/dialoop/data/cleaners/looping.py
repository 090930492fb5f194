"""Looping answers: the end of an answer repeats one piece over and over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dialoop.data.cleaners import Cleaner, Verdict

if TYPE_CHECKING:
    from dialoop.data.sample import Sample

WINDOW_CHARS = 4000
_LOOP = re.compile(r"(.{2,200}?)\1{4,}", re.DOTALL)
_RULE = re.compile(r"[\s\-=_*#.|~\u2014\u2026+]*")


class DropLooping(Cleaner):
    """Drops samples with an answer that says one thing at least five times in a row.

    A repeat counts when it makes up 40 characters or more; rules and dots of layout do not.
    """

    def look(self, sample: Sample) -> Verdict:
        """Look at the assistant's turns, and at plain text."""
        texts = [m.text for m in sample.messages if m.role == "assistant"]
        texts += [sample.text] if sample.text is not None else []
        for text in texts:
            if piece := loop(text):
                return Verdict(sample, "filtered", "looping answer", repr(piece)[:60])
        return Verdict(sample)


def loop(text: str) -> str:
    """The piece that a text repeats; empty if it does not."""
    for found in _LOOP.finditer(text[-WINDOW_CHARS:]):
        if len(found.group()) >= 40 and not _RULE.fullmatch(found.group(1)):
            return found.group(1)
    return ""
