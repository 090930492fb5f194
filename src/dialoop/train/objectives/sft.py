"""Supervised fine-tuning: next-token cross-entropy on the answers' tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.train.objectives import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Sft(Objective, frozen=True):
    """Imitate the answers."""

    kind: Literal["sft"] = "sft"

    accepts: ClassVar = frozenset({"dialogue", "text"})

    @override
    def loss(self, view: View, batch: Batch) -> Tensor:
        """Mean over the labelled tokens of the whole step, of all micro-batches and ranks."""
        return (view.token_nll(batch) * batch.weights).sum() / batch.step_weight
