"""Scales: what the search wins, and what is stored."""

import pytest
import torch

from dialoop.quantize.grid import Grid, Scales, fit, nearest, round_to


def lost(
    weight: torch.Tensor, scales: Scales, grid: Grid, importance: torch.Tensor
) -> torch.Tensor:
    codes = round_to(weight, scales, grid) - scales.zero[..., None]
    return (importance * (codes * scales.scale[..., None] - weight) ** 2).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_search_never_loses_more_than_the_plain_range(bits: int, *, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 3, 32, generator=generator) ** 3
    importance = torch.rand(3, 32, generator=generator)
    grid = Grid(bits, symmetric, 32)
    plain, searched = (
        lost(weight, fit(weight, importance, grid, torch.bfloat16, search=s), grid, importance)
        for s in (False, True)
    )
    assert (searched <= plain).all()
    assert searched.sum() < plain.sum()


def test_a_symmetric_grid_uses_its_spare_level_on_the_far_side() -> None:
    weight = torch.tensor([[[8.0, 7.0, -3.0, 1.0]]])
    grid = Grid(4, symmetric=True, group=4)
    scales = fit(weight, torch.ones(1, 4), grid, torch.float32, search=True)
    assert scales.scale.item() == -1.0
    assert not lost(weight, scales, grid, torch.ones(1, 4)).any()


def test_scales_are_rounded_before_codes_are_chosen() -> None:
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    found = nearest(
        weight, torch.ones(64), Grid(4, symmetric=False, group=32), torch.bfloat16, search=True
    )
    assert found.scale.dtype == torch.bfloat16
    assert found.zero is not None
    scale = found.scale.float().repeat_interleave(32, 1)
    zero = found.zero.float().repeat_interleave(32, 1)
    expected = (weight / scale + zero).round().clamp(-8, 7)
    assert torch.equal(found.codes.float(), expected)


def test_a_weight_of_zeros_stays_one() -> None:
    found = nearest(
        torch.zeros(4, 32),
        torch.ones(32),
        Grid(4, symmetric=True, group=32),
        torch.bfloat16,
        search=True,
    )
    assert not found.dense().any()
    assert torch.isfinite(found.scale).all()
