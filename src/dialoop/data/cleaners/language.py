"""Language share: letters in the wanted languages against all letters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dialoop.data.cleaners import Cleaner, Verdict, whole_text

if TYPE_CHECKING:
    from dialoop.data.sample import Sample

_LETTERS = {"zh": re.compile("[\u3400-\u9fff\U00020000-\U0003134f]"), "en": re.compile("[A-Za-z]+")}
_OTHER = re.compile(r"[^\W\d_A-Za-z\u3400-\u9fff\U00020000-\U0003134f]+")


class Language(Cleaner):
    """Keeps samples that are mostly in the wanted languages.

    A Chinese character and an English word count the same, as do other scripts' words.

    Args:
        languages: `zh`, `en`.
        least_share: least share of units in them, 0 to 1.
    """

    def __init__(self, languages: list[str], least_share: float) -> None:
        self._languages, self._least = languages, least_share

    def look(self, sample: Sample) -> Verdict:
        """Count over all turns; a sample without letters stays."""
        text = whole_text(sample)
        counts = {name: len(pattern.findall(text)) for name, pattern in _LETTERS.items()}
        total = sum(counts.values()) + len(_OTHER.findall(text))
        wanted = sum(counts[name] for name in self._languages)
        if total and wanted < self._least * total:
            reason = f"not in {' or '.join(self._languages)}"
            return Verdict(sample, "filtered", reason, f"share {wanted / total:.2f}")
        return Verdict(sample)
