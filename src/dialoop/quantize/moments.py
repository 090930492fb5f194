"""Moments: what is remembered of a layer's inputs, sums over all calibration tokens."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 8192
"""Tokens that are turned into float32 at once."""


class Moments:
    """Sums over the inputs of linear layers that read the same states.

    Args:
        width: D, inputs of the layers.
        device: where the sums are kept.
        products: keep the (D, D) sum of products, and not its diagonal alone.
    """

    def __init__(self, width: int, device: torch.device, *, products: bool = True) -> None:
        self.num_tokens = 0
        self.squares = torch.zeros(width, device=device)
        """(D,) sum of x squared."""
        self.magnitude = torch.zeros(width, device=device)
        """(D,) sum of |x|."""
        self.largest = torch.zeros(width, device=device)
        """(D,) largest |x|."""
        self.products = torch.zeros(width, width, device=device) if products else None
        """(D, D) sum of x x^T, float32: half of GPTQ's Hessian."""

    def add(self, states: Tensor) -> None:
        """Count some inputs (..., D) in."""
        rows = states.reshape(-1, states.shape[-1])
        for part in rows.split(CHUNK):
            wide = part.float()
            self.num_tokens += len(wide)
            if self.products is not None:
                self.products.addmm_(wide.T, wide)
            sizes = wide.abs()
            self.magnitude += sizes.sum(0)
            self.largest = torch.maximum(self.largest, sizes.amax(0))
            self.squares += sizes.square_().sum(0)

    @property
    def hessian(self) -> Tensor:
        """(D, D) mean of x x^T."""
        assert self.products is not None  # noqa: S101 - asked for when it was made
        return self.products / max(1, self.num_tokens)

    @property
    def importance(self) -> Tensor:
        """(D,) mean of x squared."""
        return self.squares / max(1, self.num_tokens)
