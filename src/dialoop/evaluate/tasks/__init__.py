"""Tasks: one file each; what is measured on one checkpoint at a time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.message import Message
    from dialoop.data.load import SampleSet
    from dialoop.evaluate.result import Measured
    from dialoop.evaluate.suite import Question


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The loss of a checkpoint on held-out records, as sums."""

    nats: float
    """Weighted sum of -log p over the target tokens."""
    targets: float
    """Sum of the target tokens' weights."""
    num_rows: int
    num_left_out: int
    """Records without a row: too long, or without an answer."""


class Subject(Protocol):
    """What a task may ask of a checkpoint."""

    def held_out(self, samples: SampleSet, row_tokens: int) -> HeldOut:
        """The loss of records, packed into rows of about `row_tokens` tokens."""
        ...

    def answers(self, dialogues: Sequence[Sequence[Message]]) -> list[str]:
        """The answer to each dialogue, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Material:
    """What the checkpoints are measured on; the same for each of them."""

    samples: SampleSet | None
    """Held-out records; None when the job names no data set."""
    questions: tuple[Question, ...]
    """The suite's questions; empty when the job names no suite."""


class Task(Option, frozen=True):
    """One kind of measurement."""

    @abstractmethod
    def lacks(self, material: Material) -> str | None:
        """The field of the job that must be given for this task and is not; None when none is."""

    @abstractmethod
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Measure one checkpoint on material that it does not lack."""
