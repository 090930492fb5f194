"""AdamW with states in 8 bits. Source: Dettmers et al. 2021, arXiv:2110.02861."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from dialoop.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


class AdamW8bit(Optimizer, frozen=True):
    """AdamW with states in 8 bits, a quarter of the memory; needs bitsandbytes."""

    kind: Literal["adamw_8bit"] = "adamw_8bit"

    state_bytes: ClassVar[float] = 2 + 2 * 4 / 256
    is_elementwise: ClassVar[bool] = True

    @override
    def build(self, groups: list[dict[str, Any]], optim: Optim) -> TorchOptimizer:
        from dialoop.train.bitsandbytes import adamw_8bit

        return adamw_8bit(groups, optim, kind=self.kind, devices=("cpu", "cuda", "xpu"))
