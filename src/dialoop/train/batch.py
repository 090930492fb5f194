"""Packed rows: what a micro-batch is, and how documents are put into one.

Documents stand one after another in one row; positions start again at each, and attention does not
cross the bounds. Padding does not exist.

T is the tokens of the row, N its labelled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dialoop.data.tokenize import Row


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed row on the device."""

    ids: Tensor
    """(T,) int64."""
    positions: Tensor
    """(T,) int64, from 0 in each document."""
    bounds: tuple[int, ...]
    """Document boundaries, 0 first and T last."""
    cu_seqlens: Tensor
    """The bounds on the device, int32."""
    rows: Tensor
    """(N,) int64: the places whose hidden state predicts a labelled token."""
    targets: Tensor
    """(N,) int64: the labelled tokens."""
    weights: Tensor
    """(N,) float32: the loss weight of each labelled token."""
    step_weight: float
    """Sum of the weights over all micro-batches and ranks of the optimiser step."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.bounds[-1]

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest document."""
        return int(np.diff(self.bounds).max())


def label_weight(rows: Sequence[Row]) -> float:
    """Sum of the loss weights of some documents; a first token has nothing that predicts it."""
    return float(sum(row.weights[1:].sum(dtype=np.float64) for row in rows))


def collate(rows: Sequence[Row], device: torch.device, step_weight: float) -> Batch:
    """Put documents into one packed row.

    Args:
        rows: the documents, each at least one token.
        device: where the tensors go.
        step_weight: the sum of label weights over the whole optimiser step.
    """
    lengths = [len(row.ids) for row in rows]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    weights = np.concatenate([row.weights for row in rows]).astype(np.float32)
    weights[bounds[:-1]] = 0
    labelled = np.flatnonzero(weights)
    ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
    positions = np.concatenate([np.arange(n) for n in lengths])

    def send(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        ids=send(ids),
        positions=send(positions),
        bounds=tuple(int(b) for b in bounds),
        cu_seqlens=send(bounds.astype(np.int32)),
        rows=send(labelled - 1),
        targets=send(ids[labelled]),
        weights=send(weights[labelled]),
        step_weight=step_weight,
    )
