"""LoRA that begins as the base's principal part. Source: Meng et al. 2024, arXiv:2404.02948."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.train.adapter import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dialoop.models.adapted import LoraLinear
    from dialoop.train.optim import Optim
    from dialoop.train.optimizers import Optimizer


class Pissa(Adapter, frozen=True):
    """Train the largest singular directions of the base; saved as a LoRA of twice the rank."""

    kind: Literal["pissa"] = "pissa"
    svd_iterations: int = Field(default=0, ge=0)
    """Of a randomised decomposition, much faster on large layers (4 is usual); 0 is exact."""

    takes_quantized: ClassVar[bool] = False

    @override
    def refuse(self, *, optimizer: Optimizer, optim: Optim, accumulate: int, dtype: str) -> None:
        del optimizer, optim, accumulate, dtype
        if self.adapter is not None:
            raise ValueError(
                "tuner.adapter: pissa is a way to begin, and an adapter has begun; use tuner lora"
            )

    @override
    def layer(self) -> type[LoraLinear]:
        from dialoop.models.adapted import PissaLinear

        return PissaLinear

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Freeze the model and take each layer's principal part as its adapter."""
        import torch

        from dialoop.models.adapted import PissaLinear
        from dialoop.models.lora import layers

        super().prepare(model, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for layer in layers(model).values():
                assert isinstance(layer, PissaLinear)  # noqa: S101
                layer.decompose(self.svd_iterations)
