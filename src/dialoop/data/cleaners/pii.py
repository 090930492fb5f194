"""Personal data: phone, identity and card numbers and e-mail addresses; reported or masked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dialoop.data.cleaners import Cleaner, Verdict, rewrite, whole_text

if TYPE_CHECKING:
    from dialoop.data.sample import Sample

_PATTERNS: dict[str, re.Pattern[str]] = {
    "EMAIL": re.compile(r"[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}", re.ASCII),
    "ID": re.compile(r"(?<![0-9A-Za-z])[1-9]\d{16}[0-9Xx](?![0-9A-Za-z])"),
    "CARD": re.compile(r"(?<![0-9])(?:\d[ -]?){15,18}\d(?![0-9])"),
    "PHONE": re.compile(
        r"(?<![0-9])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![0-9])"
        r"|(?<![0-9-])0\d{2,3}-\d{7,8}(?![0-9])"
        r"|(?<![0-9])\+\d{1,3}[ -]\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}(?![0-9])"
    ),
}


class Pii(Cleaner):
    """Counts personal data, or puts `[PHONE]` and the like in its place.

    Args:
        mask: replace it.
    """

    def __init__(self, mask: bool) -> None:
        self._mask = mask

    def look(self, sample: Sample) -> Verdict:
        """Look at every turn."""
        found = sorted(kinds(whole_text(sample)))
        if not found:
            return Verdict(sample)
        reason = f"personal data {'masked' if self._mask else 'found'}: {', '.join(found)}"
        return Verdict(rewrite(sample, mask) if self._mask else sample, "changed", reason)


def kinds(text: str) -> set[str]:
    """Which kinds of personal data a text holds."""
    return {
        name
        for name, pattern in _PATTERNS.items()
        if any(_is_real(name, found.group()) for found in pattern.finditer(text))
    }


def mask(text: str) -> str:
    """The text with personal data replaced by its kind in brackets."""
    for name, pattern in _PATTERNS.items():
        text = pattern.sub(
            lambda found, name=name: (
                f"[{name}]" if _is_real(name, found.group()) else found.group()
            ),
            text,
        )
    return text


def _is_real(name: str, value: str) -> bool:
    """Whether the check digit is right, where there is one."""
    if name == "ID":
        weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
        total = sum(int(d) * w for d, w in zip(value, weights, strict=False))
        return "10X98765432"[total % 11] == value[-1].upper()
    if name == "CARD":
        digits = [int(d) for d in value if d.isdigit()]
        doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
        return digits[0] in {3, 4, 5, 6} and (sum(digits[::-2]) + sum(doubled)) % 10 == 0
    return True
