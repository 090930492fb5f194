"""8-bit AdamW whose states may leave the device. Source: Dettmers et al. 2023, section 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from dialoop.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


class PagedAdamW8bit(Optimizer, frozen=True):
    """8-bit AdamW whose states move to the host when the device is full; CUDA and XPU."""

    kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"

    state_bytes: ClassVar[float] = 2 + 2 * 4 / 256
    is_elementwise: ClassVar[bool] = True

    @override
    def build(self, groups: list[dict[str, Any]], optim: Optim) -> TorchOptimizer:
        from dialoop.train.bitsandbytes import adamw_8bit

        return adamw_8bit(groups, optim, kind=self.kind, devices=("cuda", "xpu"))
