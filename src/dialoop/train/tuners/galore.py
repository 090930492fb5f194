"""GaLore: full training with low-rank gradients. Source: Zhao et al. 2024, arXiv:2403.03507."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat
from typing_extensions import override

from dialoop.train.projected import Projected

if TYPE_CHECKING:
    from dialoop.train.subspace import Subspace


class Galore(Projected, frozen=True):
    """Train every parameter; the optimiser works in the gradient's largest directions."""

    kind: Literal["galore"] = "galore"
    scale: PositiveFloat = 0.25
    """Factor of a projected layer's update."""
    svd_iterations: int = Field(default=0, ge=0)
    """Of a randomised decomposition, much faster on large layers (4 is usual); 0 is exact."""

    projects: ClassVar[bool] = True

    @override
    def subspace(self, seed: int) -> Subspace:
        from dialoop.train.subspace import Principal

        del seed
        return Principal(self.update_proj_gap, self.scale, self.svd_iterations)
