"""Simple preference optimisation. Source: Meng et al. 2024, arXiv:2405.14734, eq. 6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat
from typing_extensions import override

from dialoop.train.objectives import Outcome
from dialoop.train.pairs import Pairwise, pair_metrics

if TYPE_CHECKING:
    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Simpo(Pairwise, frozen=True):
    """Prefer the chosen answer by a margin, length-normalised; no reference model."""

    kind: Literal["simpo"] = "simpo"
    beta: PositiveFloat = 2.0
    """Scale of the rewards; 2 to 10 is usual."""
    gamma: float = Field(default=1.0, ge=0)
    """Margin between the rewards."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are thought to be the wrong way round."""

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the pairs of the whole step."""
        import torch.nn.functional as F

        rewards = self.beta * batch.document_mean(view.token_logps(batch))
        chosen, rejected = rewards[::2], rewards[1::2]  # (U,) each
        logits, smooth = chosen - rejected - self.gamma, self.label_smoothing
        losses = -F.logsigmoid(logits) * (1 - smooth) - F.logsigmoid(-logits) * smooth
        return Outcome(batch.unit_mean(losses), pair_metrics(batch, chosen, rejected))
