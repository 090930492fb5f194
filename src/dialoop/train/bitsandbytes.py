"""What the optimisers of bitsandbytes share. Source: Dettmers et al. 2021, arXiv:2110.02861."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from dialoop.core.errors import MachineError
from dialoop.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


class EightBit(Optimizer, frozen=True):
    """AdamW whose two states are kept in 8 bits, in blocks of 256 with a scale each.

    Parameters of fewer than 4096 numbers keep float32 states.
    """

    devices: ClassVar[tuple[str, ...]]
    """Where it runs."""
    is_paged: ClassVar[bool] = False
    """Whether states may leave the device."""
    state_bytes: ClassVar[float] = 2 + 2 * 4 / 256
    needs_whole_matrices: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = True

    @override
    def build(self, groups: list[dict[str, Any]], optim: Optim) -> TorchOptimizer:
        if find_spec("bitsandbytes") is None:
            raise MachineError(
                f"the optimiser {self.kind} needs the package `bitsandbytes`, which is not"
                " installed",
                hint="pip install 'dialoop[qlora]', or use --optimizer adamw",
            )
        place = groups[0]["params"][0].device.type
        if place not in self.devices:
            raise MachineError(
                f"the optimiser {self.kind} runs on {' or '.join(self.devices)}, and the job on"
                f" `{place}`",
                hint="use --optimizer adamw, or another --device",
            )
        from bitsandbytes.optim.adamw import AdamW8bit

        return AdamW8bit(groups, betas=(optim.beta1, optim.beta2), is_paged=self.is_paged)
