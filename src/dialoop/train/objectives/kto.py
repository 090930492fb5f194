"""Kahneman-Tversky optimisation: answers judged one by one.

Sources: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8; APO-zero for single answers, D'Oosterlinck
et al. 2024, arXiv:2408.06266, section 3.

The reference point z0 is the mean, over the whole step on all ranks, of the log-ratios of
mismatched answers: each prompt with the answer of the next unit of the data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat
from typing_extensions import override

from dialoop.data.units import Row, Unit, judged_units
from dialoop.train.objectives import Objective, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.train.batch import Batch
    from dialoop.train.objectives import Units
    from dialoop.train.view import View


class Kto(Objective, frozen=True):
    """Raise wanted answers and lower unwanted ones; they need not come in pairs."""

    kind: Literal["kto"] = "kto"
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`apo_zero_unpaired` takes zero for the reference point."""
    beta: PositiveFloat = 0.1
    """How strongly the model is held to where it started."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Weight of wanted answers; balance it against their number."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of unwanted answers."""

    accepts: ClassVar = frozenset({"unpaired", "preference"})
    needs_reference: ClassVar = True

    @property
    @override
    def surveys(self) -> bool:
        """For the reference point, where there is one."""
        return self.loss_type == "kto"

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """Judged answers; a preference gives both of its own."""
        return judged_units(sample, template)

    @override
    def survey_unit(self, units: Units, number: int) -> Unit:
        """The prompt with the answer of the next unit."""
        own, other = units[number].rows[0], units[(number + 1) % len(units)].rows[0]
        start, begin = int((own.weights > 0).argmax()), int((other.weights > 0).argmax())
        return Unit(
            (
                Row(
                    np.concatenate([own.ids[:start], other.ids[begin:]]),
                    np.concatenate([own.weights[:start], other.weights[begin:]]),
                ),
            )
        )

    @override
    def survey(self, view: View, batch: Batch) -> Tensor:
        """(U,) log-ratios of the mismatched answers."""
        return view.sequence_logps(batch) - view.reference(batch, self.measure)

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the answers of the whole step."""
        import torch

        ratio = view.sequence_logps(batch) - view.reference(batch, self.measure)  # (U,)
        zero = torch.zeros((), device=ratio.device)
        if batch.step.surveyed is not None:
            zero = batch.step.surveyed.mean().clamp(min=0)
        wanted = batch.values > 0
        sign = torch.where(wanted, 1.0, -1.0)
        gain = sign * self.beta * (ratio - zero)
        weight = torch.where(wanted, self.desirable_weight, self.undesirable_weight)
        losses = weight * (1 - gain.sigmoid())
        metrics = {
            "accuracy": batch.unit_mean((gain > 0).float()),
            "signed_reward": batch.unit_mean(sign * self.beta * ratio.detach()),
            "kl": batch.unit_mean(zero.detach().expand(len(ratio))),
        }
        return Outcome(batch.unit_mean(losses), metrics)
