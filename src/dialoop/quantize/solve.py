"""GPTQ: columns are rounded one after another, the ones still open make up for the error.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1: errors within a block of columns are
spread at once, those to later blocks in one product; the inverse Hessian comes from a Cholesky
factor. E outputs, D inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dialoop.core.errors import UserError
from dialoop.quantize.grid import Grid, Rounded, Scales, fit, rounded

if TYPE_CHECKING:
    from dialoop.quantize.moments import Moments

BLOCK = 128


@dataclass(frozen=True, slots=True)
class Curvature:
    """A layer's Hessian, factored; layers that read the same states share it."""

    factor: Tensor
    """(D, D) upper triangular U with U^T U = the inverse of the damped Hessian, in `order`."""
    importance: Tensor
    """(D,) diagonal of the Hessian, as the inputs lie."""
    dead: Tensor
    """(D,) bool: inputs that were 0 throughout."""
    order: Tensor | None
    """(D,) the inputs as they are rounded; None for as they lie."""


def factor(hessian: Tensor, *, damping: float, reorder: bool) -> Curvature:
    """Prepare a Hessian.

    Args:
        hessian: (D, D) float32 mean of x x^T; not changed.
        damping: share of its mean diagonal that is added to the diagonal.
        reorder: round the inputs that are driven most first.

    Raises:
        UserError: it is not positive definite in spite of the damping.
    """
    importance = hessian.diagonal().clone()
    dead = importance == 0
    order = importance.argsort(descending=True, stable=True) if reorder else None
    work = hessian[order][:, order] if order is not None else hessian.clone()
    diagonal = work.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * importance.mean()
    lower, failed = torch.linalg.cholesky_ex(work)
    upper, also = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or also:
        raise UserError(
            "the calibration states do not span the inputs of a layer (their Hessian cannot be"
            " inverted)",
            hint="raise --num_tokens, or --method.damping",
        )
    return Curvature(upper, importance, dead, order)


def solve(
    weight: Tensor, curve: Curvature, grid: Grid, dtype: torch.dtype, *, search: bool
) -> Rounded:
    """Round a weight so that its outputs change least.

    Args:
        weight: (E, D) float32; not changed.
        curve: of its inputs.
        grid: its groups divide D.
        dtype: in which scales are stored.
        search: look for the best clip of each group.
    """
    width = weight.shape[1]
    alive = weight.masked_fill(curve.dead, 0.0)
    importance = curve.importance.clamp(min=float(curve.importance.mean()) * 1e-6)
    order = torch.arange(width, device=weight.device) if curve.order is None else curve.order
    left = alive.T[order].contiguous()  # (D, E), the columns that are still open
    scales = _Groups(left, importance, grid, dtype, search=search)
    if curve.order is not None:
        scales.fit_all(alive)
    owners = (order // grid.group).tolist()
    codes = torch.empty_like(left)
    size = _block_size(grid.group, width)
    for start in range(0, width, size):
        end = min(start + size, width)
        errors = torch.empty_like(left[start:end])
        for row in range(start, end):
            column = left[row]
            scale, zero = scales.of(owners[row], row)
            code = grid.to_codes((column / scale).add_(zero))
            value = ((code - zero) * scale).to(dtype)
            error = (column - value) / curve.factor[row, row]
            left[row + 1 : end].addr_(curve.factor[row, row + 1 : end], error, alpha=-1)
            codes[row], errors[row - start] = code, error
        left[end:].addmm_(curve.factor[start:end, end:].T, errors, alpha=-1)
    back = order.argsort()
    return rounded(codes[back].T.contiguous(), scales.joined(), grid, dtype)


class Solver:
    """Rounds layer after layer; those that read the same states share the factored Hessian.

    Args:
        damping: see `factor`.
        reorder: see `factor`.
        search: see `solve`.
    """

    def __init__(self, *, damping: float, reorder: bool, search: bool) -> None:
        self._damping, self._reorder, self._search = damping, reorder, search
        self._moments: Moments | None = None
        self._curve: Curvature | None = None

    def solve(self, weight: Tensor, moments: Moments, grid: Grid, dtype: torch.dtype) -> Rounded:
        """Round a weight (E, D) float32 whose inputs had these moments."""
        if self._curve is None or self._moments is not moments:
            self._moments = moments
            self._curve = factor(moments.hessian, damping=self._damping, reorder=self._reorder)
        return solve(weight, self._curve, grid, dtype, search=self._search)


class _Groups:
    """The scales of all groups: fitted when the first column of each is reached, or beforehand."""

    def __init__(
        self, left: Tensor, importance: Tensor, grid: Grid, dtype: torch.dtype, *, search: bool
    ) -> None:
        self._left, self._importance, self._grid = left, importance, grid
        self._dtype, self._search = dtype, search
        self._found: dict[int, Scales] = {}

    def fit_all(self, weight: Tensor) -> None:
        """Fit every group on the weight (E, D) as it is."""
        parts = weight.unflatten(1, (-1, self._grid.group))
        whole = self._fit(parts, self._importance.view(-1, self._grid.group))
        for number in range(parts.shape[1]):
            part = slice(number, number + 1)
            self._found[number] = Scales(whole.scale[:, part], whole.zero[:, part])

    def of(self, number: int, row: int) -> tuple[Tensor, Tensor]:
        """(E,) scale and zero of a group, whose first column is `row` if it is new."""
        if number not in self._found:
            columns = slice(row, row + self._grid.group)
            parts = self._left[columns].T.contiguous()[:, None]  # (E, 1, n)
            self._found[number] = self._fit(parts, self._importance[None, columns])
        return self._found[number].scale[:, 0], self._found[number].zero[:, 0]

    def joined(self) -> Scales:
        """(E, G) of all groups."""
        found = [self._found[number] for number in sorted(self._found)]
        return Scales(torch.cat([s.scale for s in found], 1), torch.cat([s.zero for s in found], 1))

    def _fit(self, parts: Tensor, importance: Tensor) -> Scales:
        return fit(parts, importance, self._grid, self._dtype, search=self._search)


def _block_size(group: int, width: int) -> int:
    """About 128 columns, so that a group never begins inside a block and ends outside it."""
    if group >= width or group % BLOCK == 0:
        return BLOCK
    return group * max(1, BLOCK // group)
