"""Whether an answer holds one of some texts, as a person would read it."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def holds(answer: str, texts: Iterable[str]) -> bool:
    """Whether one of the texts is in the answer, as whole words where it is written in words.

    Case, spacing and full-width forms make no difference.
    """
    whole = plain(answer)
    return any(re.search(_bounded(plain(text)), whole) for text in texts)


def plain(text: str) -> str:
    """The text without differences of case, spacing and width."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _bounded(text: str) -> str:
    """A number or a Latin word is not found within a longer one; Chinese has no spaces."""
    head = r"(?<![a-z0-9])" if re.match(r"[a-z0-9]", text) else ""
    tail = r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", text) else ""
    return head + re.escape(text) + tail
