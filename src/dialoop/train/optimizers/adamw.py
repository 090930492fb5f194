"""AdamW, all in one kernel. Source: Loshchilov and Hutter 2019, arXiv:1711.05101."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from dialoop.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


class AdamW(Optimizer, frozen=True):
    """Mean gradient over root mean square, with decoupled decay; states in float32."""

    kind: Literal["adamw"] = "adamw"

    state_bytes: ClassVar[float] = 8
    is_elementwise: ClassVar[bool] = True

    @override
    def build(self, groups: list[dict[str, Any]], optim: Optim) -> TorchOptimizer:
        import torch

        return torch.optim.AdamW(groups, betas=(optim.beta1, optim.beta2), fused=True)
