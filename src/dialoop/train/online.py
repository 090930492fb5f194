"""What online objectives share: units are made at every step from what the policy answers now.

A step of the loop is a rollout: some prompts, answers to them, units made of those, and one or
more updates on them. Prompts are units too, rows of ids without weights; in a unit that was
answered the tokens of the answer carry the weights. Of several ranks each answers its share of the
prompts; all of them then make the same units of all answers, and share these out as any others.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeVar

import numpy as np
from pydantic import PositiveInt

from dialoop.core.schema import OneOf
from dialoop.data.units import Row, Unit
from dialoop.train.objectives import Objective, Units
from dialoop.train.rollouts import RolloutOption  # noqa: TC001  pydantic reads the annotation
from dialoop.train.rollouts.policy import PolicyRollout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.train.parallel.team import Team
    from dialoop.train.rollouts import Answer, Policy, Sampler

T = TypeVar("T")


@dataclass(frozen=True)
class Made:
    """The units of a step."""

    units: list[Unit]
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """Means over the rollout, by name."""
    samples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """A few answers and what was thought of them, for people to read."""

    def unit(self, number: int) -> Unit:
        """One of the units."""
        return self.units[number]

    @cached_property
    def unit_lengths(self) -> np.ndarray:
        """(u,) tokens of each unit."""
        return np.asarray([len(unit) for unit in self.units])


class Prompts(Units, Protocol):
    """Prompts by number, and where they came from."""

    def sample(self, number: int) -> Sample:
        """The record of a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that is answered."""

    place: int
    """Among those that all ranks answer together."""
    number: int


@dataclass(frozen=True, slots=True)
class Desk:
    """What an objective asks while it makes units."""

    units: Prompts
    """Prompts, and their samples."""
    sampler: Sampler
    teacher: Sampler | None
    """The companion as a sampler."""
    template: Template
    seed: int
    team: Team
    """The ranks that share the prompts."""

    def prompt(self, number: int) -> np.ndarray:
        """(n,) the ids of a prompt."""
        return prompt_of(self.units[number])

    def chance(self, *place: int) -> np.random.Generator:
        """A source of chance of its own for each place."""
        return np.random.default_rng([self.seed, *place])

    def shared(self, numbers: Sequence[int], work: Callable[[Sequence[Asked]], list[T]]) -> list[T]:
        """What work makes of each prompt, in order on every rank, though each does a share."""
        return self.team.spread([Asked(*pair) for pair in enumerate(numbers)], work)

    def answers(
        self, asked: Sequence[Asked], num: int, *place: int, by_teacher: bool = False
    ) -> list[list[Answer]]:
        """Several answers to each of this rank's prompts; their places and `place` seed them."""
        sampler = self.teacher if by_teacher else self.sampler
        assert sampler is not None, "asked only where there is a teacher"  # noqa: S101
        seeds = [int(self.chance(*place, one.place).integers(2**31)) for one in asked]
        return sampler.sample([self.prompt(one.number) for one in asked], num, seeds)

    def text(self, answer: Answer) -> str:
        """The text of an answer, without its end token."""
        return self.template.tokenizer.decode(answer.ids.tolist())


class Online(Objective, frozen=True):
    """What objectives have in common that learn from the policy's own answers."""

    rollout: Annotated[RolloutOption, OneOf("dialoop.train.rollouts")] = PolicyRollout()
    """Where the answers come from."""
    num_prompts: PositiveInt = 2
    """Prompts of a batch; `accumulate` such batches make a step."""
    num_iterations: PositiveInt = 1
    """Updates on the answers of a step, which are then old from the second on."""

    needs_old: ClassVar[bool] = False
    """Whether later updates on a step's answers need their first log-probabilities."""

    @property
    def is_online(self) -> bool:
        """Yes, unless its settings ask for no answer."""
        return True

    @abstractmethod
    def roll(self, desk: Desk, numbers: list[int], step: int) -> Made:
        """Make the units of a step.

        Args:
            desk: answers prompts and knows their samples.
            numbers: prompts of the step.
            step: from 0; seeds whatever is drawn.
        """

    def open_teacher(self, companion: Policy) -> Sampler | None:
        """The companion as a sampler, where its answers are learned."""
        del companion

    def held_out(self, desk: Desk) -> dict[str, float] | None:
        """Loss and metrics of held-out prompts; None measures them as an offline objective."""
        del desk


def prompt_of(unit: Unit) -> np.ndarray:
    """(n,) ids before the last answer of a unit of one row; all of them where none is labelled."""
    (row,) = unit.rows
    labelled = np.flatnonzero(row.weights)
    if not len(labelled):
        return row.ids
    silent = np.flatnonzero(row.weights[: labelled[-1]] == 0)
    return row.ids[: silent[-1] + 1]


def answered(
    prompt: np.ndarray, answer: Answer, *, value: float = 0.0, weight: float = 1.0
) -> Unit:
    """A unit of one row in which the answer carries the weight.

    Args:
        prompt: (n,) ids, at least one.
        answer: what was sampled.
        value: of the unit: an advantage.
        weight: of the answer's tokens; 0 where they count for nothing.
    """
    ids = np.concatenate([prompt, answer.ids]).astype(np.int32)
    weights = np.full(len(ids), weight, np.float32)
    weights[: len(prompt)] = 0
    return Unit((Row(ids, weights),), value, answer.logps if weight else None)
