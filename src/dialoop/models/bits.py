"""Small whole numbers in 32-bit ones, and scales of parts of a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def unpack(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Numbers of few bits, the lowest first, from int32.

    Args:
        packed: int32, 32 / `bits` numbers in each.
        bits: a power of two.
        dim: along which the numbers of one stand one after another, -1 or 0.

    Returns:
        int32 from 0 to 2^bits - 1, 32 / `bits` times as long along `dim`.
    """
    shifts = torch.arange(0, 32, bits, device=packed.device, dtype=torch.int32)
    if dim == 0:
        return unpack(packed.T, bits, -1).T
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


def spread(scales: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Each number of a matrix's parts for all places of its part.

    Args:
        scales: one for each block, row by row.
        shape: (E, D) of the matrix.
        block: rows and columns of a part; the last ones may be cut off.

    Returns:
        (E, D), or what broadcasts to it.
    """
    for dim, (size, length) in enumerate(zip(shape, block, strict=True)):
        if scales.shape[dim] > 1:
            scales = scales.repeat_interleave(length, dim).narrow(dim, 0, size)
    return scales
