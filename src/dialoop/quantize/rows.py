"""Packed rows: dialogues rendered by the checkpoint's template, one after another, no padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dialoop.data.pack import best_fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.template import Row
    from dialoop.data.tokenize import TokenRows


@dataclass(frozen=True, slots=True)
class PackedRow:
    """T tokens of some documents, on the host."""

    ids: np.ndarray
    """(T,) int64."""
    bounds: tuple[int, ...]
    """Document boundaries, 0 first and T last."""
    weights: np.ndarray
    """(T,) float32: of predicting each token from those before it; 0 at a document's first."""

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """What a decoder with packed attention takes."""
        lengths = np.diff(self.bounds)
        positions = np.concatenate([np.arange(length) for length in lengths])
        return {
            "input_ids": torch.from_numpy(self.ids)[None].to(device),
            "position_ids": torch.from_numpy(positions)[None].to(device),
            "use_cache": False,
            "bounds": self.bounds,
            "cu_seqlens": torch.tensor(self.bounds, dtype=torch.int32, device=device),
            "max_seqlen": int(lengths.max()),
        }

    @property
    def labelled(self) -> np.ndarray:
        """(N,) places of the tokens that are predicted."""
        return np.flatnonzero(self.weights)


def join(rows: Sequence[Row]) -> PackedRow:
    """One packed row of some documents."""
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    weights = np.concatenate([row.weights for row in rows]).astype(np.float32)
    weights[bounds[:-1]] = 0
    ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
    return PackedRow(ids, tuple(int(b) for b in bounds), weights)


def choose(rows: TokenRows, num_tokens: int, part_tokens: int, seed: int) -> list[PackedRow]:
    """Documents drawn at random, about `num_tokens` tokens of them, packed.

    Args:
        rows: tokenised dialogues.
        num_tokens: at most so many tokens are taken, and at least one document.
        part_tokens: tokens that are computed at once; at least a document's.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    ends = np.cumsum(rows.lengths[order])
    taken = order[: max(1, int(np.searchsorted(ends, num_tokens, side="right")))]
    lengths = rows.lengths[taken]
    bins = best_fit(lengths, max(part_tokens, int(lengths.max())))
    return [join([rows.row(int(taken[place])) for place in sorted(members)]) for members in bins]
