"""Tasks: one file each; what is measured on one checkpoint at a time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dialoop.chat.message import Message, Tool, ToolCall
    from dialoop.data.load import SampleSet
    from dialoop.evaluate.result import Measured
    from dialoop.evaluate.suite import Question
    from dialoop.train.endpoint import Endpoint


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
    rows: tuple[tuple[float, float], ...] = ()
    """The two sums of each row, in the order of the records."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, with the functions that may be called."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes back."""

    text: str
    calls: tuple[ToolCall, ...] = ()


class Subject(Protocol):
    """What a task may ask of a checkpoint, on this machine or behind an endpoint.

    Each raises a UserError where a subject cannot do it, which says what can.
    """

    def held_out(self, samples: SampleSet, row_tokens: int) -> HeldOut:
        """The loss of records, packed into rows of about `row_tokens` tokens."""
        ...

    def answers(self, dialogues: Sequence[Sequence[Message]]) -> list[str]:
        """The answer to each dialogue, in order."""
        ...

    def replies(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """The answer to each prompt, in order, with the calls in it."""
        ...

    def choices(
        self, dialogues: Sequence[Sequence[Message]], words: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """How likely an answer begins with each of its words: log p up to a constant.

        -inf for a word that an endpoint does not name among the likeliest ones.
        """
        ...

    def vectors(self, texts: Sequence[str], before: str) -> NDArray[np.float32]:
        """(texts, width) the embedding of each text, of length 1; `before` stands before each."""
        ...

    def num_tokens(self, text: str) -> int:
        """The tokens of a text."""
        ...

    def address(self) -> Endpoint:
        """Where it is asked over HTTP."""
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

    name: str = ""
    """What the report calls it; needed where a kind is asked for twice."""

    runs_unasked: ClassVar[bool] = False
    """Whether it runs when no task is named and its material is there."""

    @property
    def title(self) -> str:
        """The name, or the kind without one."""
        return self.name or self.kind

    def lacks(self, material: Material) -> str | None:
        """The field of the job that must be given for this task and is not; None when none is."""
        del material
        return None

    @abstractmethod
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Measure one checkpoint on material that it does not lack."""

    def confront(self, model: Measured, before: Measured | None) -> Measured:
        """What is found once both checkpoints are measured; by default nothing more."""
        del before
        return model
