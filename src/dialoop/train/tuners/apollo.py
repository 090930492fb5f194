"""APOLLO: SGD-like memory, AdamW-like steps. Source: Zhu et al. 2024, arXiv:2412.05270."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat, PositiveInt
from typing_extensions import override

from dialoop.train.projected import Projected

if TYPE_CHECKING:
    from dialoop.train.subspace import Subspace


class Apollo(Projected, frozen=True):
    """Train every parameter; channels move at rates found in a random projection."""

    kind: Literal["apollo"] = "apollo"
    rank: PositiveInt = 256
    """Rows of the random projection; 1 is APOLLO-Mini, one rate for a whole matrix."""
    scale: PositiveFloat | None = None
    """Factor of a projected layer's update; when left out 1, and sqrt(128) for rank 1."""
    norm_growth: PositiveFloat = 1.01
    """Largest growth of an update's norm from one step to the next."""

    @override
    def subspace(self, seed: int) -> Subspace:
        from dialoop.train.subspace import Channels

        scale = self.scale or (math.sqrt(128) if self.rank == 1 else 1.0)
        return Channels(self.update_proj_gap, scale, self.norm_growth, seed)
