"""Grids: the numbers that a rounded weight can be, and the scales that lose the least.

A scale covers `group` neighbouring inputs of one output. It is searched: candidates below and above
the one that just reaches the largest weight are tried, and the one with the least squared error,
weighted by how strongly each input is driven, is then refined by least squares. A symmetric grid
of b bits has one level more below zero than above; its scale may be negative, so that this level
serves whichever side needs it. Source: clip search as in GPTQ's reference code (Frantar et al.
2022, arXiv:2210.17323) and AWQ (Lin et al. 2023, arXiv:2306.00978, section 3.2).

E outputs, D inputs, G groups of n inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHARES = tuple(1 - 0.05 * step for step in range(11))
"""Tried shares of the range of a group; the rest is clipped."""
FP8 = torch.float8_e4m3fn
FP8_MAX = 448
FEW = 1 << 17
"""Weights that are looked at together on a CPU, so that they stay in its cache."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How one linear layer is rounded."""

    bits: int
    """4 or 8."""
    symmetric: bool
    group: int
    """Inputs that share a scale."""
    is_float: bool = False
    """Codes are 8-bit floats (e4m3), symmetric, and no whole numbers."""

    @property
    def low(self) -> int:
        """The lowest code."""
        return -FP8_MAX if self.is_float else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The highest code."""
        return FP8_MAX if self.is_float else -self.low - 1

    def to_codes(self, values: Tensor) -> Tensor:
        """The nearest codes, float32, of values in units of the scale; may change the values."""
        if self.is_float:
            return values.clamp_(self.low, self.high).to(FP8).float()
        return values.round_().clamp_(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales and zero points of some groups."""

    scale: Tensor
    """(E, G) float32, rounded to the type in which it is stored."""
    zero: Tensor
    """(E, G) float32 whole numbers; zeros on a symmetric grid."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight on its grid."""

    codes: Tensor
    """(E, D) int8, or 8-bit floats."""
    scale: Tensor
    """(E, G) in the checkpoint's type."""
    zero: Tensor | None
    """(E, G) int8; None on a symmetric grid."""

    def dense(self) -> Tensor:
        """(E, D) the weight that readers compute with, in the type of the scales."""
        codes = self.codes.unflatten(1, (self.scale.shape[1], -1)).to(self.scale.dtype)
        if self.zero is not None:
            codes = codes - self.zero[..., None].to(codes.dtype)
        return (codes * self.scale[..., None]).flatten(1)


def fit(
    weight: Tensor, importance: Tensor, grid: Grid, dtype: torch.dtype, *, search: bool
) -> Scales:
    """The scales of groups.

    Args:
        weight: (E, G, n) float32.
        importance: (G, n) float32, how much an error of each input costs.
        grid: its bits and symmetry.
        dtype: in which scales are stored.
        search: look for the best clip; else the range is kept whole.
    """
    most = max(1, FEW // (weight.shape[1] * weight.shape[2]))
    if weight.device.type == "cpu" and len(weight) > most:
        each = [fit(w, importance, grid, dtype, search=search) for w in weight.split(most)]
        return Scales(torch.cat([s.scale for s in each]), torch.cat([s.zero for s in each]))
    tried = (
        _symmetric(weight, grid, search=search)
        if grid.symmetric
        else _ranged(weight, grid, search=search)
    )
    best: Scales | None = None
    least = weight.new_full(weight.shape[:2], torch.inf)
    for scale, zero in tried:
        new = Scales(_stored(scale, dtype), zero)
        best, least = _better(weight, importance, grid, best, least, new)
    assert best is not None  # noqa: S101 - there is always a first candidate
    if search:
        codes = round_to(weight, best, grid) - best.zero[..., None]
        above = (importance * weight * codes).sum(-1)
        below = (importance * codes * codes).sum(-1)
        refined = torch.where(below > 0, above / below.clamp(min=1e-30), best.scale)
        best, _ = _better(
            weight, importance, grid, best, least, Scales(_stored(refined, dtype), best.zero)
        )
    return best


def round_to(weight: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """(E, G, n) float32 codes, whole numbers, of a weight of that shape."""
    return grid.to_codes(weight / scales.scale[..., None] + scales.zero[..., None])


def nearest(
    weight: Tensor, importance: Tensor, grid: Grid, dtype: torch.dtype, *, search: bool
) -> Rounded:
    """A weight rounded to nearest.

    Args:
        weight: (E, D) float32.
        importance: (D,) float32.
        grid: its groups divide D.
        dtype: in which scales are stored.
        search: look for the best clip.
    """
    parts = weight.unflatten(1, (-1, grid.group))
    scales = fit(parts, importance.view(-1, grid.group), grid, dtype, search=search)
    return rounded(round_to(parts, scales, grid).flatten(1), scales, grid, dtype)


def rounded(codes: Tensor, scales: Scales, grid: Grid, dtype: torch.dtype) -> Rounded:
    """Codes (E, D) and their scales as they are stored."""
    zero = None if grid.symmetric else scales.zero.to(torch.int8)
    return Rounded(codes.to(FP8 if grid.is_float else torch.int8), scales.scale.to(dtype), zero)


def _better(
    weight: Tensor, importance: Tensor, grid: Grid, best: Scales | None, least: Tensor, new: Scales
) -> tuple[Scales, Tensor]:
    error = round_to(weight, new, grid).sub_(new.zero[..., None]).mul_(new.scale[..., None])
    cost = error.sub_(weight).square_().mul_(importance).sum(-1)  # (E, G)
    if best is None:
        return new, cost
    is_less = cost < least
    scale = torch.where(is_less, new.scale, best.scale)
    return Scales(scale, torch.where(is_less, new.zero, best.zero)), torch.minimum(cost, least)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale as it is read back; never 0, by which nothing could be divided."""
    read = scale.to(dtype).float()
    return torch.where(read == 0, torch.ones_like(read), read)


def _symmetric(weight: Tensor, grid: Grid, *, search: bool) -> list[tuple[Tensor, Tensor]]:
    low, high = weight.amin(-1), weight.amax(-1)
    largest = torch.maximum(-low, high)
    zero = torch.zeros_like(low)
    if not search:
        return [(largest / grid.high, zero)]
    unit = (
        torch.where(high > -low, -largest, largest) / -grid.low
    )  # the far side gets the spare level
    ratios = (-grid.low / grid.high, *SHARES)
    return [(unit * ratio, zero) for ratio in ratios]


def _ranged(weight: Tensor, grid: Grid, *, search: bool) -> list[tuple[Tensor, Tensor]]:
    low, high = weight.amin(-1).clamp(max=0), weight.amax(-1).clamp(min=0)
    steps = grid.high - grid.low
    shares = SHARES if search else (1.0,)
    pairs = [(share, share) for share in shares]
    if search:
        pairs += [(1.0, s) for s in shares[1:7:2]] + [(s, 1.0) for s in shares[1:7:2]]
    found: list[tuple[Tensor, Tensor]] = []
    for lower, upper in pairs:
        scale = (high * upper - low * lower) / steps
        safe = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = (grid.low - low * lower / safe).round().clamp(grid.low, grid.high)
        found.append((scale, zero))
    return found
