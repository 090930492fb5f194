"""A subject that says what it is told to say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dialoop.chat.message import Message
from dialoop.core.errors import UserError
from dialoop.evaluate.tasks import HeldOut, Prompt, Reply
from dialoop.train.endpoint import Endpoint


def last_words(prompt: Prompt) -> Reply:
    """The default: what was asked comes back."""
    return Reply(prompt.messages[-1].text)


@dataclass
class Puppet:
    """Answers by a function, and remembers what it was asked."""

    say: Callable[[Prompt], Reply] = last_words
    likes: Callable[[str, Sequence[str]], list[float]] = lambda _, words: [0.0] * len(words)
    asked: list[Prompt] = field(default_factory=list)

    def held_out(self, samples: object, row_tokens: int) -> HeldOut:
        return HeldOut(30.0, 20.0, 2, 1, ((10.0, 5.0), (20.0, 15.0)))

    def answers(self, dialogues: Sequence[Sequence[Message]]) -> list[str]:
        return [reply.text for reply in self.replies([Prompt(tuple(d)) for d in dialogues])]

    def replies(self, prompts: Sequence[Prompt]) -> list[Reply]:
        self.asked += prompts
        return [self.say(prompt) for prompt in prompts]

    def choices(
        self, dialogues: Sequence[Sequence[Message]], words: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        self.asked += [Prompt(tuple(dialogue)) for dialogue in dialogues]
        return [self.likes(d[-1].text, some) for d, some in zip(dialogues, words, strict=True)]

    def vectors(self, texts: Sequence[str], before: str) -> Any:
        """Counts of letters: texts of the same letters are near."""
        counts = np.array([[t.lower().count(c) + 1e-3 for c in "abcdefgh"] for t in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)

    def num_tokens(self, text: str) -> int:
        return len(text) // 4

    def address(self) -> Endpoint:
        raise UserError("no endpoint")
