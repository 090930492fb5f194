"""Token statistics: lengths, their histogram, and what share of the tokens is learned from."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

BAR_WIDTH = 40


class Bin(BaseModel, frozen=True):
    """Rows whose length lies in `least`..`most` tokens."""

    least: int
    most: int
    rows: int


class TokenStats(BaseModel, frozen=True):
    """How long rows are, in tokens."""

    rows: int
    tokens: int
    targets: int
    """Tokens that the loss falls on."""
    shortest: int
    median: int
    percentile_90: int
    percentile_99: int
    longest: int
    histogram: list[Bin]

    def lines(self) -> list[str]:
        """What a person reads."""
        out = [
            f"{self.tokens} tokens in {self.rows} rows, {self.targets} of them learned from "
            f"({self.targets / max(self.tokens, 1):.0%})",
            f"tokens a row: {self.shortest} shortest, {self.median} median, "
            f"{self.percentile_90} at 90 %, {self.percentile_99} at 99 %, {self.longest} longest",
        ]
        most = max(item.rows for item in self.histogram)
        for item in self.histogram:
            bar = "#" * round(BAR_WIDTH * item.rows / most)
            out.append(f"{item.least:>7}-{item.most:<7} {item.rows:>8} {bar}")
        return out


def measure(lengths: np.ndarray, targets: int) -> TokenStats:
    """Statistics of row lengths.

    Args:
        lengths: (n,) tokens of each row, n of 1 or more.
        targets: tokens with a loss weight above zero.
    """
    at = np.percentile(lengths, [0, 50, 90, 99, 100]).round().astype(int).tolist()
    return TokenStats(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        targets=targets,
        shortest=at[0],
        median=at[1],
        percentile_90=at[2],
        percentile_99=at[3],
        longest=at[4],
        histogram=_histogram(lengths),
    )


def _histogram(lengths: np.ndarray) -> list[Bin]:
    """Bins that double in width: 1-15, 16-31, 32-63, ... up to the longest row."""
    edges = [0, 16]
    while edges[-1] <= lengths.max():
        edges.append(edges[-1] * 2)
    counts, _ = np.histogram(lengths, bins=edges)
    bins = [
        Bin(least=least, most=most - 1, rows=int(rows))
        for least, most, rows in zip(edges, edges[1:], counts, strict=False)
    ]
    while bins and not bins[0].rows:
        bins = bins[1:]
    return bins
