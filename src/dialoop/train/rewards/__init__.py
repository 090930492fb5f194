"""Rewards: one file each; what a sampled answer is worth."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.message import Message
    from dialoop.data.sample import Sample
    from dialoop.train.rollouts import Answer


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and what it answers."""

    prompt: tuple[Message, ...]
    """The dialogue before the answer."""
    text: str
    num_tokens: int
    """End token included."""
    is_complete: bool
    """Whether it ended by itself."""
    sample: Sample
    """The record that the prompt came from, with its columns in `extra`."""

    @classmethod
    def of(cls, sample: Sample, text: str, answer: Answer) -> Answered:
        """An answer to a sample's prompt."""
        known = sample.messages[-1].role == "assistant"
        prompt = sample.messages[: -1 if known else None]
        return cls(prompt, text, len(answer.ids), answer.is_complete, sample)

    def column(self, name: str) -> Any:
        """A column of the record; for `solution` the record's own last answer where it has none.

        None when there is neither.
        """
        found = dict(self.sample.extra).get(name)
        if found is None and name == "solution" and len(self.prompt) < len(self.sample.messages):
            return self.sample.messages[-1].text
        return found


class Reward(Option, frozen=True):
    """What an answer is worth; usually between 0 and 1."""

    weight: float = 1.0
    """Factor in the sum of all rewards."""

    @property
    def name(self) -> str:
        """What it is called in logs."""
        return self.kind

    def scores(self, answers: Sequence[Answered]) -> list[float]:
        """What each answer is worth."""
        return [self.score(answer) for answer in answers]

    @abstractmethod
    def score(self, answer: Answered) -> float:
        """What one answer is worth.

        Raises:
            UserError: the record lacks what the reward compares with.
        """


def names_of(rewards: Sequence[Reward]) -> list[str]:
    """A name for each, different from one another."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for reward in rewards:
        seen[reward.name] += 1
        names.append(f"{reward.name}_{n}" if (n := seen[reward.name]) > 1 else reward.name)
    return names
