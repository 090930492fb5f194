"""What the optimisers of bitsandbytes share. Source: Dettmers et al. 2021, arXiv:2110.02861."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import MachineError

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


def adamw_8bit(
    groups: list[dict[str, Any]], optim: Optim, *, kind: str, devices: tuple[str, ...]
) -> TorchOptimizer:
    """AdamW whose two states are kept in 8 bits, in blocks of 256 with a scale each.

    Args:
        groups: the parameters; those of fewer than 4096 numbers keep float32 states.
        optim: decay rates.
        kind: name of the option, for messages.
        devices: where it runs.

    Raises:
        MachineError: the package is missing, or the device is of another kind.
    """
    if find_spec("bitsandbytes") is None:
        raise MachineError(
            f"the optimiser {kind} needs the package `bitsandbytes`, which is not installed",
            hint="pip install 'dialoop[qlora]', or use --optimizer adamw",
        )
    place = groups[0]["params"][0].device.type
    if place not in devices:
        raise MachineError(
            f"the optimiser {kind} runs on {' or '.join(devices)}, and the job on `{place}`",
            hint="use --optimizer adamw, or another --device",
        )
    from bitsandbytes.optim.adamw import AdamW8bit

    betas, is_paged = (optim.beta1, optim.beta2), kind.startswith("paged")
    return AdamW8bit(groups, betas=betas, is_paged=is_paged)
