"""Every parameter moves, in float32; the forward pass computes in the job's type by autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.train.tuners import Tuner

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts


class Full(Tuner, frozen=True):
    """Train every parameter."""

    kind: Literal["full"] = "full"

    default_lr: ClassVar[float] = 1e-5

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Widen to float32 and let everything move."""
        del seed
        model.float().requires_grad_(requires_grad=True)

    @override
    def save(self, model: PreTrainedModel, folder: Path, base: str, dtype: str) -> None:
        """Write a whole checkpoint's weights and config in the job's type, from a copy."""
        from dialoop.models.save import save_weights

        del base
        save_weights(model, folder, dtype)

    @override
    def num_trained(self, facts: ModelFacts) -> int:
        """All of them."""
        return facts.num_parameters

    @override
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """Float32 weights, and the copy that autocast keeps for the backward pass."""
        return facts.num_parameters * (4 + (compute_bytes if compute_bytes < 4 else 0))
