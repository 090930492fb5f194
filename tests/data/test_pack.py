"""Packing: every row once, no bin too full, little waste, the same bins every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoop.core.errors import UserError
from dialoop.data.pack import best_fit, fill


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 90))
def test_every_row_is_in_one_bin_that_holds_it(lengths: list[int], capacity: int) -> None:
    bins = best_fit(lengths, capacity)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= capacity for rows in bins)
    assert all(bins)
    # Best-fit decreasing needs at most 11/9 of the best packing plus one bin.
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // capacity) * 2 + 1
    assert best_fit(np.asarray(lengths), capacity) == bins


def test_a_row_goes_to_the_fullest_bin_with_room() -> None:
    assert best_fit([6, 7, 3, 4, 10], 10) == [[4], [1, 2], [0, 3]]


def test_real_lengths_waste_less_than_one_percent() -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.5, 0.8, 100_000).astype(int) + 1, 1, 2048)
    bins = best_fit(lengths, 2048)
    assert fill(lengths, bins, 2048) > 0.99
    assert len(bins) >= lengths.sum() / 2048


def test_nothing_packs_into_nothing() -> None:
    assert best_fit([], 8) == []
    assert fill([], [], 8) == 1.0


def test_a_row_longer_than_a_bin_is_named() -> None:
    with pytest.raises(UserError, match="row 1 has 9 tokens, more than the 8"):
        best_fit([3, 9], 8)
