"""Pre-training: next-token cross-entropy on every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.train.objectives import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Pt(Objective, frozen=True):
    """Continue the text."""

    kind: Literal["pt"] = "pt"

    accepts: ClassVar = frozenset({"dialogue", "text"})
    labels: ClassVar = "all"

    @override
    def loss(self, view: View, batch: Batch) -> Tensor:
        """Mean over the tokens of the whole step, of all micro-batches and ranks."""
        return (view.token_nll(batch) * batch.weights).sum() / batch.step_weight
