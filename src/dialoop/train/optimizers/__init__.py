"""Optimisers: one file each; how a gradient moves a parameter."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from dialoop.train.optim import Optim


class Optimizer(Option, frozen=True):
    """Moves parameters; rate, schedule, decay and clipping are the job's `optim`."""

    state_bytes: ClassVar[float]
    """Memory of its state for each trained parameter."""
    unused: ClassVar[frozenset[str]] = frozenset()
    """Fields of `optim` that mean nothing to it."""
    needs_whole_matrices: ClassVar[bool] = False
    """Whether it cannot work, or was not made to, on shards of a matrix."""
    is_elementwise: ClassVar[bool] = False
    """Whether each number moves by its own history, so that it may work in a subspace."""

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], optim: Optim) -> TorchOptimizer:
        """Make it for groups that the tuner made; the loop sets the rate before each step.

        Raises:
            MachineError: a package or a kind of device is missing.
        """
