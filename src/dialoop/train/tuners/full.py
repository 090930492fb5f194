"""Every parameter moves, in float32; the forward pass computes in the job's type by autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.train.whole_model import WholeModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Full(WholeModel, frozen=True):
    """Train every parameter."""

    kind: Literal["full"] = "full"

    default_lr: ClassVar[float] = 1e-5

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Widen to float32 and let everything move."""
        del seed
        model.float().requires_grad_(requires_grad=True)
