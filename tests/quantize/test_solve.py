"""GPTQ equals the paper written plainly, and makes up for errors."""

import pytest
import torch
from torch import Tensor

from dialoop.core.errors import UserError
from dialoop.quantize.grid import Grid, nearest
from dialoop.quantize.moments import Moments
from dialoop.quantize.solve import Solver, factor, solve
from dialoop.quantize.storage import fp8_channels


def inputs(width: int, tokens: int = 500) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(tokens, width, generator=generator) @ torch.randn(
        width, width, generator=generator
    )
    return mixed + 0.5 * torch.randn(tokens, width, generator=generator)


def weights(outputs: int, width: int) -> Tensor:
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(4))


def plain(weight: Tensor, hessian: Tensor, grid: Grid, damping: float) -> Tensor:
    """Frantar et al. 2022, equations 2 and 3, one column at a time, the inverse updated: float64.

    Scales reach the largest weight of a group, as it is when its first column comes.
    """
    left, h = weight.double().clone(), hessian.double().clone()
    h += damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverse = h.inverse()
    out = torch.empty_like(left)
    scale = zero = torch.zeros(len(left), dtype=torch.float64)
    for column in range(weight.shape[1]):
        if column % grid.group == 0:
            part = left[:, column : column + grid.group]
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            if grid.symmetric:
                scale, zero = part.abs().amax(1) / grid.high, torch.zeros(len(part)).double()
            else:
                scale = (high - low) / (grid.high - grid.low)
                zero = (grid.low - low / scale).round()
        code = (left[:, column] / scale + zero).round().clamp(grid.low, grid.high)
        out[:, column] = (code - zero) * scale
        error = (left[:, column] - out[:, column]) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return out


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("width", "group"), [(96, 32), (200, 40), (320, 64), (192, 192), (60, 60)])
def test_it_equals_the_paper_in_float64(width: int, group: int, *, symmetric: bool) -> None:
    x, weight = inputs(width), weights(17, width)
    moments = Moments(width, x.device)
    moments.add(x[None, :200])
    moments.add(x[None, 200:])
    grid = Grid(4, symmetric, group)
    curve = factor(moments.hessian, damping=0.01, reorder=False)
    ours = solve(weight, curve, grid, torch.float32, search=False).dense()
    theirs = plain(weight, x.double().T @ x.double() / len(x), grid, 0.01)
    # A weight on the border of two codes may fall to either side in float32, and its error moves.
    same = (ours.double() - theirs).abs() < 1e-3
    assert same.float().mean() > 0.97
    lost = [
        float(((q.double() - weight.double()) @ x.double().T).square().sum())
        for q in (ours, theirs)
    ]
    assert lost[0] == pytest.approx(lost[1], rel=0.02)


@pytest.mark.parametrize("reorder", [True, False])
def test_it_loses_less_than_rounding_to_nearest(*, reorder: bool) -> None:
    x, weight = inputs(128), weights(64, 128)
    moments = Moments(128, x.device)
    moments.add(x)
    grid = Grid(4, symmetric=True, group=32)
    solver = Solver(damping=0.01, reorder=reorder, search=True)
    ours = solver.solve(weight, moments, grid, torch.bfloat16).dense()
    other = nearest(weight, moments.importance, grid, torch.bfloat16, search=True).dense()
    lost = [float(((q.float() - weight) @ x.T).square().sum()) for q in (ours, other)]
    assert lost[0] < 0.6 * lost[1]


def test_8_bit_floats_make_up_for_errors_as_well() -> None:
    """The codes are floats that compressed-tensors stores, nearest where there is one column."""
    x, weight = inputs(128), weights(64, 128)
    moments = Moments(128, x.device)
    moments.add(x)
    grid = Grid(8, symmetric=True, group=128, is_float=True)
    solver = Solver(damping=0.01, reorder=True, search=False)
    ours = solver.solve(weight, moments, grid, torch.bfloat16)
    other = fp8_channels(weight, torch.bfloat16)
    assert ours.codes.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(ours.scale, other.tensors["weight_scale"])
    lost = [float(((q.float() - weight) @ x.T).square().sum()) for q in (ours.dense(), other.dense)]
    assert lost[0] < 0.5 * lost[1]


def test_inputs_that_never_fire_are_rounded_to_zero() -> None:
    x = inputs(64)
    x[:, 5] = 0
    moments = Moments(64, x.device)
    moments.add(x)
    grid = Grid(4, symmetric=True, group=32)
    curve = factor(moments.hessian, damping=0.01, reorder=True)
    dense = solve(weights(8, 64), curve, grid, torch.float32, search=True).dense()
    assert not dense[:, 5].any()
    assert torch.isfinite(dense).all()


def test_a_hessian_that_cannot_be_inverted_is_an_error() -> None:
    with pytest.raises(UserError, match="do not span the inputs of a layer"):
        factor(torch.full((8, 8), float("nan")), damping=0.01, reorder=False)


def test_moments_are_the_sums_of_the_inputs() -> None:
    x = inputs(16, 30)
    moments = Moments(16, x.device)
    moments.add(x[None, :10])
    moments.add(x[10:])
    torch.testing.assert_close(moments.hessian, x.T @ x / 30, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.importance, moments.hessian.diagonal(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.largest, x.abs().amax(0))
    torch.testing.assert_close(moments.magnitude, x.abs().sum(0), rtol=1e-5, atol=1e-4)
