"""Odds-ratio preference optimisation. Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.

The likelihood term is on the tokens of the chosen answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveFloat
from typing_extensions import override

from dialoop.train.objectives import Outcome
from dialoop.train.pairs import Pairwise, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Orpo(Pairwise, frozen=True):
    """Imitate the chosen answer and lower the odds of the rejected one; no reference model."""

    kind: Literal["orpo"] = "orpo"
    beta: PositiveFloat = 0.1
    """Weight of the odds-ratio term (lambda in the paper)."""

    needs_reference: ClassVar = False

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over chosen tokens of the likelihood term, over pairs of the odds ratio's."""
        import torch.nn.functional as F

        logps = view.token_logps(batch)
        means = batch.document_mean(logps)
        chosen, rejected = means[::2], means[1::2]  # (U,) each
        log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
        loss = batch.first_mean(-logps) - batch.unit_mean(self.beta * F.logsigmoid(log_odds))
        return Outcome(loss, pair_metrics(batch, self.beta * chosen, self.beta * rejected))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of negative numbers, exact near zero too (Mächler 2012)."""
    import torch

    x = x.clamp(max=-1e-7)
    is_near = x > -0.693
    near = torch.log(-torch.expm1(torch.where(is_near, x, -1.0)))
    return torch.where(is_near, near, torch.log1p(-torch.exp(torch.where(is_near, -1.0, x))))
