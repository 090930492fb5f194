"""Objectives: one file each. A file holds one Objective; its fields are its hyperparameters."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.data.sample import Kind
    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Objective(Option, frozen=True):
    """Turns a packed row and a model's view of it into this row's share of the step's loss."""

    accepts: ClassVar[frozenset[Kind]]
    """Kinds of sample that it can learn from."""
    labels: ClassVar[Literal["answers", "all"]] = "answers"
    """Which tokens carry the loss."""

    @abstractmethod
    def loss(self, view: View, batch: Batch) -> Tensor:
        """() This micro-batch's part of the loss: the parts of a step add up to its mean."""
