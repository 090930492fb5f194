"""Tuners: one file each; which parameters move, and how the result is saved."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts


class Tuner(Option, frozen=True):
    """Decides which parameters of a loaded model move."""

    quantization: ClassVar[Literal["nf4"] | None] = None
    """How the frozen base is stored while training."""
    default_lr: ClassVar[float]
    """Peak learning rate when the job names none."""

    @property
    def start(self) -> str:
        """What beside the model decides the policy at its start, for caches."""
        return str(self.quantization)

    @abstractmethod
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Mark or add the parameters that move, in place; those are float32 afterwards."""

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path, base: str, dtype: str) -> None:
        """Write the weights that other tools load: an adapter in PEFT's format, or a model."""

    @abstractmethod
    def num_trained(self, facts: ModelFacts) -> int:
        """How many parameters move in a model of that shape, for the plan."""

    @abstractmethod
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """Memory of all weights, trained ones included, for the plan."""
