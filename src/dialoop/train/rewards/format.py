"""Format: the whole answer has a given form, by default thoughts before the answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator
from typing_extensions import override

from dialoop.train.rewards import Reward

if TYPE_CHECKING:
    from dialoop.train.rewards import Answered


class Format(Reward, frozen=True):
    """1 when the whole answer matches, else 0."""

    kind: Literal["format"] = "format"
    pattern: str = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"
    """Regular expression of the whole answer; `.` matches line ends too."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return pattern

    @override
    def score(self, answer: Answered) -> float:
        """1 or 0."""
        return float(re.fullmatch(self.pattern, answer.text, re.DOTALL) is not None)
