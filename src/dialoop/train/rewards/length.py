"""Length: answers of a wanted number of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import override

from dialoop.train.rewards import Reward

if TYPE_CHECKING:
    from dialoop.train.rewards import Answered


class Length(Reward, frozen=True):
    """1 within the bounds, falling to 0 at no token and at twice the upper bound."""

    kind: Literal["length"] = "length"
    min_tokens: int = Field(default=0, ge=0)
    """Shorter answers are worth less."""
    max_tokens: PositiveInt = 256
    """Longer answers are worth less."""

    @model_validator(mode="after")
    def _refuse_crossed(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens")
        return self

    @override
    def score(self, answer: Answered) -> float:
        """Between 0 and 1."""
        if answer.num_tokens < self.min_tokens:
            return answer.num_tokens / self.min_tokens
        return max(0.0, min(1.0, 2 - answer.num_tokens / self.max_tokens))
