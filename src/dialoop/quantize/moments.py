"""Moments: what is remembered of a layer's inputs, sums over all calibration tokens."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 8192
"""Tokens that are turned into float32 at once."""
BLOCK = 256
"""Rows of the products that are computed at once; what lies below them is mirrored at the end."""


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
        self._upper = torch.zeros(width, width, device=device) if products else None

    def add(self, states: Tensor) -> None:
        """Count some inputs (..., D) in."""
        rows = states.reshape(-1, states.shape[-1])
        for part in rows.split(CHUNK):
            wide = part.float()
            self.num_tokens += len(wide)
            if self._upper is not None:
                _add_products(self._upper, wide)
            sizes = wide.abs()
            self.magnitude += sizes.sum(0)
            self.largest = torch.maximum(self.largest, sizes.amax(0))
            self.squares += sizes.square_().sum(0)

    @property
    def hessian(self) -> Tensor:
        """(D, D) float32 mean of x x^T: half of GPTQ's Hessian."""
        assert self._upper is not None  # noqa: S101 - asked for when it was made
        upper = self._upper.triu()
        return (upper + upper.triu(1).T).div_(max(1, self.num_tokens))

    @property
    def importance(self) -> Tensor:
        """(D,) mean of x squared."""
        return self.squares / max(1, self.num_tokens)


def _add_products(upper: Tensor, rows: Tensor) -> None:
    """Add x x^T of (t, D) rows to a (D, D) sum, on and above its diagonal, and a little below."""
    for start in range(0, rows.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        upper[part, start:].addmm_(rows[:, part].T, rows[:, start:])
