"""Mixing: how many rows of which set, and which dialogues are held out; pure index arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


def take(num_rows: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `wanted` rows of `num_rows`: a sample, or whole repeats and a sample.

    Returns:
        Int64 array of `wanted` indices, in order within each repeat.
    """
    repeats, rest = divmod(wanted, num_rows)
    part = np.sort(rng.choice(num_rows, size=rest, replace=False))
    return np.concatenate([np.tile(np.arange(num_rows), repeats), part]).astype(np.int64)


def shares(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Rows of each set, so that the mix has as many rows as the sets together.

    Raises:
        UserError: not one weight a set, or weights that are not shares.
    """
    if len(weights) != len(sizes):
        raise UserError(
            f"weights: {len(weights)} for {len(sizes)} data sets", hint="give one for each"
        )
    total = float(sum(weights))
    if min(weights) < 0 or total <= 0:
        raise UserError(f"weights: {list(weights)} are not shares", hint="give numbers above 0")
    return [round(sum(sizes) * weight / total) for weight in weights]


def split(keys: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which rows are held out: whole groups of equal keys, until the share is reached.

    Args:
        keys: group of each row; rows of one dialogue share one.
        fraction: share of the rows to hold out, 0 to 0.5.
        seed: of the choice.

    Returns:
        Boolean array, true where held out; at least one group on each side when there are two.
    """
    groups, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    held = np.zeros(len(groups), dtype=bool)
    if fraction <= 0 or len(groups) < 2:
        return held[inverse]
    wanted = min(max(1, round(len(keys) * fraction)), len(keys) - 1)
    num_held = 0
    for group in np.random.default_rng(seed).permutation(len(groups)):
        if num_held >= wanted or held.sum() == len(groups) - 1:
            break
        held[group] = True
        num_held += counts[group]
    return held[inverse]
