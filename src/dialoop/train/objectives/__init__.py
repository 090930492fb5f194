"""Objectives: one file each. A file holds one Objective; its fields are its hyperparameters.

The loop runs a step in three parts, of which an objective fills in what it needs:

1. `survey`, without gradient, over the step's `survey_units`: what the loss must know of the whole
   step. The loop joins it over micro-batches and ranks into `batch.step.surveyed`.
2. `loss` of each micro-batch, followed by its backward pass. The step's loss is the sum of these
   over micro-batches and ranks, so that means use `batch.token_mean` and `batch.unit_mean`.
3. `metrics` are shares of the step's mean in the same way.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.chat.template import Template
    from dialoop.data.sample import Kind, Sample
    from dialoop.data.units import Unit
    from dialoop.models.heads import Head
    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Units(Protocol):
    """The units of a data set by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, number: int) -> Unit:
        """One of them."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an objective makes of a micro-batch."""

    loss: Tensor
    """() this micro-batch's share of the step's loss."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """() shares of the step's means, by name, without gradient."""


@dataclass(frozen=True, slots=True)
class Companion:
    """A frozen model beside the policy."""

    model: str
    """A short name, a folder, or an address."""
    quantization: Literal["nf4"] | None = None


class Objective(Option, frozen=True):
    """What a loss rewards."""

    accepts: ClassVar[frozenset[Kind]]
    """Kinds of sample that it can learn from."""
    num_rows: ClassVar[int] = 1
    """Rows of a unit; 0 when that varies."""
    sees_itself: ClassVar[bool] = False
    """Whether a micro-batch that is the whole step needs no survey, for its loss has it all."""
    needs_reference: ClassVar[bool] = False
    """Whether rows are compared with the model as it was at the start."""

    @property
    def head(self) -> Head:
        """What the model ends in: a token distribution, scores, or its hidden states."""
        return "tokens"

    @property
    def num_scores(self) -> int:
        """How many scores a text gets, where the head is a score."""
        return 1

    def settled(self, samples: Iterable[Sample], folder: Path) -> Self:
        """The same with everything filled in that data and checkpoint decide.

        Args:
            samples: all training samples.
            folder: the model's checkpoint.

        Raises:
            UserError: the data does not say what is needed.
        """
        del samples, folder
        return self

    @property
    def is_online(self) -> bool:
        """Whether a step learns from what the policy answers now; see `train.online`."""
        return False

    def companion(self, policy: str, *, has_adapter: bool) -> Companion | None:
        """A second, frozen model that the loss asks as `view.companion`.

        Args:
            policy: name or folder of the model that is trained.
            has_adapter: whether the policy can be asked as it was at its start.
        """
        del policy, has_adapter

    def check(self, template: Template) -> None:
        """Look at what the objective needs beside this machine, before anything is loaded.

        Raises:
            UserError: it does not serve.
            UpstreamError: it is not there.
        """

    @property
    def surveys(self) -> bool:
        """Whether `survey` is needed before the loss."""
        return False

    @abstractmethod
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """The units of a sample.

        Raises:
            UserError: the sample cannot train this objective, and why.
        """

    @property
    def encoding(self) -> str:
        """Name of what `encode` makes, for the cache; names the fields that it depends on."""
        return self.kind

    @abstractmethod
    def loss(self, view: View, batch: Batch) -> Outcome:
        """This micro-batch's share of the step's loss."""

    def survey_unit(self, units: Units, number: int) -> Unit:
        """What is surveyed for a unit: itself, unless an objective says otherwise."""
        return units[number]

    def survey(self, view: View, batch: Batch) -> Tensor:
        """What the step's loss must know of these units, one row for each of their rows.

        It runs without gradient, and on the same random numbers as the losses that follow.
        """
        raise NotImplementedError(self.kind)

    def measure(self, view: View, batch: Batch) -> Tensor:
        """(S,) what policy and reference are compared by: summed log-probabilities of answers."""
        return view.sequence_logps(batch)

    @property
    def measure_key(self) -> str:
        """Names what `measure` depends on, for the cache of references."""
        return "sum"

    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Change the model before its tuner does, in place: the names of its labels, say."""

    def describe(self, model: PreTrainedModel, folder: Path, max_length: int) -> None:
        """Write beside the saved weights what else their users need.

        Args:
            model: the trained model.
            folder: where it was saved.
            max_length: tokens of the longest row that it was trained on.
        """
