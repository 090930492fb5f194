"""Reward model: a score that puts the better answer above the worse one.

Sources: Bradley-Terry loss, Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin, Touvron et al.
2023, arXiv:2307.09288, eq. 2; scores centred on zero, Eisenstein et al. 2023, arXiv:2312.09244,
section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.data.units import compared_units
from dialoop.train.objectives import Objective, Outcome

if TYPE_CHECKING:
    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.models.heads import Head
    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Rm(Objective, frozen=True):
    """Score the chosen answer above the rejected one, by the column `margin` where there is one."""

    kind: Literal["rm"] = "rm"
    center_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of both scores, which keeps them around zero; 0.01 is usual."""

    accepts: ClassVar = frozenset({"preference"})
    num_rows: ClassVar = 2

    @property
    @override
    def head(self) -> Head:
        """A score."""
        return "score"

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """Pairs (chosen, rejected), whole."""
        return compared_units(sample, template)

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the pairs of the whole step."""
        import torch.nn.functional as F

        scores = view.scores(batch)[:, 0]  # (S,)
        chosen, rejected = scores[::2], scores[1::2]  # (U,) each
        losses = -F.logsigmoid(chosen - rejected - batch.values)
        losses = losses + self.center_coefficient * (chosen + rejected) ** 2
        margin = (chosen - rejected).detach()
        metrics = {
            "accuracy": batch.unit_mean((margin > 0).float()),
            "margin": batch.unit_mean(margin),
            "reward": batch.unit_mean((chosen + rejected).detach() / 2),
        }
        return Outcome(batch.unit_mean(losses), metrics)
