"""A filter of 60,000 words for measuring: what a gateway costs with one behind it.

The words are made up, so that no answer contains one; the work is that of a real list. A stream is
held back as far as its end may be the beginning of a word.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dialoop.gateway.guard import Blocked

if TYPE_CHECKING:
    from collections.abc import Iterable

    import ahocorasick_rs

    from dialoop.gateway.guard import Channel

NUM_WORDS = 60_000
_LONGEST = 6


def word_list() -> list[str]:
    """Words of two to six Chinese characters, always the same."""
    chance = random.Random(0)  # noqa: S311  no secret
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    words = {"".join(chance.choices(letters, k=chance.randint(2, _LONGEST))) for _ in range(61_000)}
    return sorted(words)[:NUM_WORDS]


class WordStream:
    """One stream of text.

    Args:
        automaton: finds words.
        beginnings: of all words, whole words left out.
    """

    def __init__(self, automaton: ahocorasick_rs.AhoCorasick, beginnings: frozenset[str]) -> None:
        self._automaton, self._beginnings = automaton, beginnings
        self._held = ""

    def feed(self, text: str) -> str:
        """Take text, give what may be shown now."""
        text = self._held + text
        check(self._automaton, text)
        for length in range(min(_LONGEST - 1, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                self._held = text[-length:]
                return text[:-length]
        self._held = ""
        return text

    def finish(self) -> str:
        """Give what was held back."""
        held, self._held = self._held, ""
        return held


class WordGuard:
    """A filter that forbids words."""

    policy = "benchmark-1"

    def __init__(self, words: list[str]) -> None:
        import ahocorasick_rs

        self._automaton = ahocorasick_rs.AhoCorasick(words)
        self._beginnings = frozenset(word[:end] for word in words for end in range(1, len(word)))

    def check(self, texts: Iterable[str]) -> None:
        """Check a prompt."""
        for text in texts:
            check(self._automaton, text)

    def open(self, channel: Channel) -> WordStream:
        """A stream of text of one choice."""
        del channel
        return WordStream(self._automaton, self._beginnings)


def check(automaton: ahocorasick_rs.AhoCorasick, text: str) -> None:
    """Look for a word.

    Raises:
        Blocked: there is one.
    """
    if found := automaton.find_matches_as_indexes(text):
        raise Blocked("word", rule=str(found[0][0]))


def guard() -> WordGuard:
    """What the gateway's `guard` names."""
    return WordGuard(word_list())
