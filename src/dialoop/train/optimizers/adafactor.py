"""Adafactor as torch has it. Source: Shazeer and Stern 2018, arXiv:1804.04235."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


class Adafactor(Optimizer, frozen=True):
    """Row and column means in place of AdamW's states; steps relative to each matrix's size."""

    kind: Literal["adafactor"] = "adafactor"
    beta2_decay: float = Field(default=-0.8, le=0)
    """Exponent by which the second moment's decay nears 1 as steps go by."""
    clipping: float = Field(default=1.0, ge=1)
    """Largest root mean square of an update."""

    state_bytes: ClassVar[float] = 0.01
    unused: ClassVar[frozenset[str]] = frozenset({"beta1", "beta2"})

    @override
    def build(self, groups: list[dict[str, Any]], optim: Optim) -> TorchOptimizer:
        import torch

        del optim
        return torch.optim.Adafactor(groups, beta2_decay=self.beta2_decay, d=self.clipping)
