"""Best-fit-decreasing packing: rows of many lengths into bins of one capacity, none ever split.

Source: Johnson's best-fit-decreasing; for training rows, "Fewer Truncations Improve Language
Modeling" (Ding et al., 2024, section 3).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy as np

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


def best_fit(lengths: np.ndarray | Sequence[int], capacity: int) -> list[list[int]]:
    """Put every row into the fullest bin that still has room for it, longest rows first.

    O(n log n) for n rows; the same input always gives the same bins.

    Args:
        lengths: (n,) tokens of each row, each at most `capacity`.
        capacity: tokens that a bin holds.

    Returns:
        The rows of each bin, by their place in `lengths`.

    Raises:
        UserError: a row is longer than a bin.
    """
    sizes = np.asarray(lengths, np.int64)
    if not len(sizes):
        return []
    longest = int(sizes.argmax())
    if sizes[longest] > capacity:
        raise UserError(
            f"row {longest} has {sizes[longest]} tokens, more than the {capacity} of a packed row",
            hint="raise max_length, or choose what becomes of long rows with overlong",
        )
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # room left -> bins with that room
    rooms: list[int] = []  # the keys of open_bins, ascending
    for row in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[row])
        place = bisect_left(rooms, size)
        if place == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            number = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[place]
        bins[number].append(row)
        left = room - size
        if left:
            if left not in open_bins:
                open_bins[left] = []
                insort(rooms, left)
            open_bins[left].append(number)
    return bins


def fill(lengths: np.ndarray | Sequence[int], bins: list[list[int]], capacity: int) -> float:
    """Share of the bins' tokens that rows use, from 0 to 1."""
    return float(np.sum(lengths)) / (len(bins) * capacity) if bins else 1.0
