"""Contrastive preference optimisation. Source: Xu et al. 2024, arXiv:2401.08417, eq. 3 to 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from typing_extensions import override

from dialoop.train.objectives import Outcome
from dialoop.train.pairs import Pairwise, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Cpo(Pairwise, frozen=True):
    """Prefer the chosen answer while imitating it; no reference model."""

    kind: Literal["cpo"] = "cpo"
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Form of the preference term; `ipo` compares means of tokens, the others sums."""
    beta: PositiveFloat = 0.1
    """Scale of the rewards."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the chosen answer's likelihood."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are thought to be the wrong way round; for sigmoid."""

    @model_validator(mode="after")
    def _refuse_unused(self) -> Self:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(f"label_smoothing has no meaning in loss_type {self.loss_type}")
        return self

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over pairs of the preference term, over chosen tokens of the likelihood's."""
        logps = view.token_logps(batch)
        is_mean = self.loss_type == "ipo"
        scores = batch.document_mean(logps) if is_mean else batch.document_sum(logps)
        chosen, rejected = scores[::2], scores[1::2]  # (U,) each
        loss = batch.unit_mean(self._losses(chosen - rejected))
        if self.alpha:
            loss = loss + self.alpha * batch.first_mean(-logps)
        return Outcome(loss, pair_metrics(batch, self.beta * chosen, self.beta * rejected))

    def _losses(self, ratio: Tensor) -> Tensor:
        """(U,) from the difference of the answers' log-probabilities."""
        import torch.nn.functional as F

        logits, smooth = self.beta * ratio, self.label_smoothing
        match self.loss_type:
            case "sigmoid":
                return -F.logsigmoid(logits) * (1 - smooth) - F.logsigmoid(-logits) * smooth
            case "hinge":
                return F.relu(1 - logits)
            case "ipo":
                return (ratio - 1 / (2 * self.beta)) ** 2
