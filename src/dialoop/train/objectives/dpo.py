"""Direct preference optimisation and its variants, on pairs in one packed row.

Sources: DPO, Rafailov et al. 2023, arXiv:2305.18290, eq. 7; label smoothing (cDPO), Mitchell 2023;
IPO, Azar et al. 2023, arXiv:2310.12036, eq. 17, with the length-normalised log-ratios of its
authors; hinge (SLiC), Zhao et al. 2023, arXiv:2305.10425; robust, Chowdhury et al. 2024,
arXiv:2403.00409, eq. 9; APO, D'Oosterlinck et al. 2024, arXiv:2408.06266, section 3; LD-DPO, Liu et
al. 2024, arXiv:2409.06411, eq. 8; the likelihood term (RPO), Pang et al. 2024, arXiv:2404.19733,
eq. 1, as a mean over the chosen tokens of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from typing_extensions import override

from dialoop.train.objectives import Outcome
from dialoop.train.pairs import Pairwise, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Dpo(Pairwise, frozen=True):
    """Prefer the chosen answer to the rejected one, compared with the model at the start."""

    kind: Literal["dpo"] = "dpo"
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down"] = "sigmoid"
    """Form of the loss."""
    beta: PositiveFloat = 0.1
    """How strongly the model is held to where it started."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are thought to be the wrong way round; for sigmoid and robust."""
    rpo_alpha: float = Field(default=0.0, ge=0)
    """Weight of the chosen answer's own loss (a token of it, on average); 0 leaves it out."""
    ld_alpha: float = Field(default=1.0, ge=0, le=1)
    """Weight of the tokens past the shorter answer's length; below 1 length counts less."""

    needs_reference: ClassVar = True

    @model_validator(mode="after")
    def _refuse_unused(self) -> Self:
        if self.label_smoothing and self.loss_type not in {"sigmoid", "robust"}:
            raise ValueError(
                f"label_smoothing has no meaning in loss_type {self.loss_type}; use sigmoid, robust"
            )
        return self

    @override
    def measure(self, view: View, batch: Batch) -> Tensor:
        """(S,) log-probabilities of the answers; means of tokens for IPO."""
        return self._by_document(view.token_logps(batch), batch)

    @property
    @override
    def measure_key(self) -> str:
        """What the sums depend on."""
        return f"{'mean' if self.loss_type == 'ipo' else 'sum'} {self.ld_alpha}"

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the pairs of the whole step."""
        logps = view.token_logps(batch)
        policy = self._by_document(logps, batch)
        ratio = policy - view.reference(batch, self.measure)
        chosen, rejected = ratio[::2], ratio[1::2]  # (U,) each
        loss = batch.unit_mean(self._losses(chosen, rejected))
        if self.rpo_alpha:
            loss = loss + self.rpo_alpha * batch.first_mean(-logps)
        return Outcome(loss, pair_metrics(batch, self.beta * chosen, self.beta * rejected))

    def _losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """(U,) the loss of each pair from the log-ratios of its answers."""
        import torch.nn.functional as F

        logits, smooth = self.beta * (chosen - rejected), self.label_smoothing
        match self.loss_type:
            case "sigmoid":
                return -F.logsigmoid(logits) * (1 - smooth) - F.logsigmoid(-logits) * smooth
            case "robust":
                wrong = -F.logsigmoid(-logits) * smooth
                return (-F.logsigmoid(logits) * (1 - smooth) - wrong) / (1 - 2 * smooth)
            case "hinge":
                return F.relu(1 - logits)
            case "ipo":
                return (chosen - rejected - 1 / (2 * self.beta)) ** 2
            case "apo_zero":
                return 1 - (self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()
            case "apo_down":
                return (self.beta * chosen).sigmoid() + 1 - logits.sigmoid()

    def _by_document(self, logps: Tensor, batch: Batch) -> Tensor:
        """(N,) to (S,): sums, or means, with the excess length weighed by `ld_alpha`."""
        weights = batch.weights
        if self.ld_alpha < 1:
            weights = weights * self._length_weights(batch)
        if self.loss_type == "ipo":
            return batch.document_mean(logps, weights)
        return batch.document_sum(logps, weights)

    def _length_weights(self, batch: Batch) -> Tensor:
        """(N,) 1 for tokens within the length that both answers of a pair have, else ld_alpha."""
        import torch

        lengths = torch.bincount(batch.documents, minlength=batch.num_documents)  # (S,)
        shared = lengths.view(-1, 2).amin(1).repeat_interleave(2)  # (S,)
        start = lengths.cumsum(0) - lengths
        age = torch.arange(len(batch.documents), device=lengths.device) - start[batch.documents]
        return torch.where(age < shared[batch.documents], 1.0, self.ld_alpha)
