"""What tuners share that train the model's own parameters and save it whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from dialoop.train.tuners import Tuner

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts


class WholeModel(Tuner, frozen=True):
    """A tuner without an adapter."""

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
