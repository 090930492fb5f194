"""Muon: orthogonalised momentum for hidden matrices, AdamW for the rest.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale of the update by
Liu et al. 2025, arXiv:2502.16982, section 2.2. The step is torch's own `torch.optim.Muon`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


class Muon(Optimizer, frozen=True):
    """Orthogonalised momentum for hidden matrices; embedding, head and vectors by AdamW."""

    kind: Literal["muon"] = "muon"
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean gradient of hidden matrices."""
    scale: Literal["adamw", "original"] = "adamw"
    """Size of an update: 0.2 sqrt(max(E, D)), so that AdamW's rates fit; or sqrt(max(1, E / D))."""
    iterations: PositiveInt = 5
    """Newton-Schulz iterations."""

    state_bytes: ClassVar[float] = 4
    needs_whole_matrices: ClassVar[bool] = True

    @override
    def build(self, groups: list[dict[str, Any]], optim: Optim) -> TorchOptimizer:
        import torch

        from dialoop.train.combined import Combined

        matrices = [g for g in groups if g["is_hidden"]]
        others = [g for g in groups if not g["is_hidden"]]
        parts: list[TorchOptimizer] = []
        if matrices:
            adjust = "match_rms_adamw" if self.scale == "adamw" else "original"
            parts.append(
                torch.optim.Muon(
                    matrices,
                    momentum=self.momentum,
                    ns_steps=self.iterations,
                    adjust_lr_fn=adjust,
                )
            )
        if others:
            betas = (optim.beta1, optim.beta2)
            parts.append(torch.optim.AdamW(others, betas=betas, fused=True))
        return Combined(parts)
