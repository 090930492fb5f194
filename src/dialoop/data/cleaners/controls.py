"""Control and zero-width characters: removed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dialoop.data.cleaners import Cleaner, Verdict, rewrite

if TYPE_CHECKING:
    from dialoop.data.sample import Sample

# C0 and C1 controls but tab, line feed, carriage return; zero-width space, non-joiner, marks;
# the joiner (U+200D) only outside emoji sequences.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
    "|(?<![\u2600-\U0001faff\ufe0f])\u200d"
)


class StripControls(Cleaner):
    """Removes what nobody sees."""

    def look(self, sample: Sample) -> Verdict:
        """Change the sample where it holds such characters."""
        cleaned = rewrite(sample, lambda text: _UNSEEN.sub("", text).replace("\r\n", "\n"))
        if cleaned == sample:
            return Verdict(sample)
        return Verdict(cleaned, "changed", "control or zero-width characters removed")
