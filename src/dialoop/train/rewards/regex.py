"""Regex: the share of given patterns that occur in the answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from dialoop.train.rewards import Reward

if TYPE_CHECKING:
    from dialoop.train.rewards import Answered


class Regex(Reward, frozen=True):
    """The share of the patterns that are found, less that of the forbidden ones."""

    kind: Literal["regex"] = "regex"
    patterns: list[str] = Field(default=[])
    """Regular expressions that should occur somewhere."""
    forbidden: list[str] = Field(default=[])
    """Regular expressions that should not."""

    @field_validator("patterns", "forbidden")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"`{pattern}` is no regular expression: {error}") from error
        return patterns

    @override
    def score(self, answer: Answered) -> float:
        """Between -1 and 1."""

        def share(patterns: list[str]) -> float:
            hits = [re.search(p, answer.text, re.DOTALL) is not None for p in patterns]
            return sum(hits) / max(1, len(hits))

        return share(self.patterns) - share(self.forbidden)
