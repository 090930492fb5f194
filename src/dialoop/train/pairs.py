"""What objectives on pairs (chosen, rejected) share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from dialoop.data.units import pair_units
from dialoop.train.objectives import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.train.batch import Batch


class Pairwise(Objective, frozen=True):
    """An objective whose units are a better and a worse answer to one prompt."""

    accepts: ClassVar = frozenset({"preference"})
    num_rows: ClassVar = 2

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """Pairs (chosen, rejected)."""
        return pair_units(sample, template)

    @property
    @override
    def encoding(self) -> str:
        """The same for all of them."""
        return "pairs"


def pair_metrics(batch: Batch, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Shares of the step's means of the rewards (U,) of both answers, and how often they agree."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "reward_accuracy": batch.unit_mean((chosen > rejected).float()),
        "reward_margin": batch.unit_mean(chosen - rejected),
        "reward_chosen": batch.unit_mean(chosen),
        "reward_rejected": batch.unit_mean(rejected),
    }
