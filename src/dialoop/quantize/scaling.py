"""Scaling: the factors by which AWQ and SmoothQuant move strength from inputs to weights.

D inputs, E outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dialoop.quantize import balance
from dialoop.quantize.grid import Grid, fit, round_to

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.quantize.balance import Pair
    from dialoop.quantize.moments import Moments
    from dialoop.quantize.source import Layer


def search(layer: Layer, pair: Pair, seen: Moments, grid: Grid, num_candidates: int) -> Tensor:
    """(D,) AWQ's factors: the mean size of each input to the power that loses least.

    What is lost is the squared error of the readers' outputs, tr(d H d^T) for the error d of a
    weight and H the mean of x x^T. Source: Lin et al. 2023, arXiv:2306.00978, eq. 4 and 5.

    Args:
        layer: with the weights of the pair.
        pair: whose readers are to be rounded.
        seen: of the readers' inputs, with products.
        grid: on which the readers will be rounded.
        num_candidates: exponents that are tried.
    """
    hessian = seen.hessian
    sizes = balance.shared(layer, pair, seen.magnitude / max(1, seen.num_tokens))
    sizes = sizes.clamp(min=1e-4 * float(sizes.mean()) + 1e-12)
    weights = torch.cat([layer.weight(name) for name in pair.readers])  # (E, D)
    importance = seen.importance
    best, least = torch.ones_like(sizes), torch.inf
    for step in range(num_candidates):
        factors = sizes ** (step / num_candidates)
        factors = factors / (factors.max() * factors.min()).sqrt()
        scaled = (weights * factors).unflatten(1, (-1, grid.group))
        driven = (importance / factors.square()).view(-1, grid.group)
        scales = fit(scaled, driven, grid, torch.float32, search=False)
        codes = round_to(scaled, scales, grid).sub_(scales.zero[..., None])
        error = codes.mul_(scales.scale[..., None]).flatten(1).div_(factors).sub_(weights)
        lost = float((error @ hessian).mul_(error).sum())
        if lost < least:
            best, least = factors, lost
    return best


def smooth(layer: Layer, pair: Pair, seen: Moments, strength: float) -> Tensor:
    """(D,) SmoothQuant's factors max|x|^a / max|w|^(1-a).

    Source: Xiao et al. 2022, arXiv:2211.10438, eq. 4.

    Args:
        layer: with the weights of the pair.
        pair: whose readers' inputs are smoothed.
        seen: of the readers' inputs.
        strength: a, the share of the difficulty that goes to the weights.
    """
    largest = seen.largest.clamp(min=1e-5)
    weights = torch.stack([layer.weight(name).abs().amax(0) for name in pair.readers]).amax(0)
    return largest**strength / weights.clamp(min=1e-5) ** (1 - strength)
