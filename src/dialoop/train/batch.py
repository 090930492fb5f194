"""Packed rows: what a micro-batch is, and how units are put into one.

The rows of all units stand one after another as documents of one packed row; positions start again
at each, and attention does not cross the bounds. Padding does not exist.

T is the tokens of the packed row, N its labelled tokens, S its documents, U its units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dialoop.data.units import Unit


@dataclass(frozen=True, slots=True)
class Step:
    """What all micro-batches of an optimiser step, on all ranks, come to.

    The loss of a step is the sum of what the objective returns for its micro-batches. Means
    therefore divide by the totals of the whole step, and neither accumulation nor the number of
    ranks changes a step.
    """

    weight: float
    """Sum of the loss weights of all labelled tokens."""
    num_units: int
    first_weight: float = 1.0
    """The same as `weight`, of the first row of each unit alone: the chosen answers of pairs."""
    surveyed: Tensor | None = None
    """What the objective surveyed, of all micro-batches one after another; see `Objective`."""


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
    documents: Tensor
    """(N,) int64: the document of each labelled token."""
    units: Tensor
    """(S,) int64: the unit of each document."""
    values: Tensor
    """(U,) float32: the number that belongs to each unit."""
    segments: Tensor
    """(T,) int64: 1 from where a document's second text begins, else 0."""
    step: Step = field(default_factory=lambda: Step(1.0, 1))
    place: int = 0
    """Where the documents of this micro-batch begin in what the step surveyed."""
    reference: Tensor | None = None
    """(S,) float32: what the reference model gives each document, where that is known."""
    old: Tensor | None = None
    """(N,) float32: log p of each labelled token when it was sampled, where that is known."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.bounds[-1]

    @property
    def num_documents(self) -> int:
        """S."""
        return len(self.bounds) - 1

    @property
    def num_units(self) -> int:
        """U."""
        return len(self.values)

    @property
    def ranks(self) -> Tensor:
        """(S,) int64: the place of each document in its unit, from 0."""
        places = torch.arange(len(self.units), device=self.units.device)
        return places - torch.searchsorted(self.units, self.units)

    @property
    def owners(self) -> Tensor:
        """(T,) int64: the document of each token."""
        lengths = self.cu_seqlens.diff()
        return torch.arange(len(lengths), device=lengths.device).repeat_interleave(
            lengths, output_size=self.num_tokens
        )

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest document."""
        return int(np.diff(self.bounds).max())

    def document_sum(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """(N,) values of labelled tokens, weighted and summed by document: (S,)."""
        values = values * (self.weights if weights is None else weights)
        zero = torch.zeros(self.num_documents, dtype=values.dtype, device=values.device)
        return zero.index_add(0, self.documents, values)

    def document_mean(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """(N,) values of labelled tokens to their weighted means by document: (S,)."""
        total = self.document_sum(torch.ones_like(self.weights), weights)
        return self.document_sum(values, weights) / total.clamp(min=torch.finfo(total.dtype).tiny)

    def token_mean(self, values: Tensor) -> Tensor:
        """This micro-batch's share of the step's weighted mean over tokens; (N,) to ()."""
        return (values * self.weights).sum() / self.step.weight

    def first_mean(self, values: Tensor) -> Tensor:
        """As `token_mean`, over the tokens of the first document of each unit."""
        is_first = torch.ones_like(self.units, dtype=torch.bool)  # (S,)
        is_first[1:] = self.units.diff() > 0
        return (values * self.weights * is_first[self.documents]).sum() / self.step.first_weight

    def per_token(self, values: Tensor) -> Tensor:
        """(S,) values of documents, repeated for their labelled tokens: (N,)."""
        return values[self.documents]

    def unit_mean(self, values: Tensor) -> Tensor:
        """This micro-batch's share of the step's mean over units; (U,) to ()."""
        return values.sum() / self.step.num_units


def label_weight(units: Sequence[Unit], *, rows: int | None = None) -> float:
    """Sum of the loss weights of some units; a first token has nothing that predicts it.

    Args:
        units: what is counted.
        rows: count only so many rows of each unit.
    """
    counted = (row for unit in units for row in unit.rows[:rows])
    return float(sum(row.weights[1:].sum(dtype=np.float64) for row in counted))


def num_rows(units: Sequence[Unit]) -> int:
    """Rows of some units."""
    return sum(len(unit.rows) for unit in units)


def collate(
    units: Sequence[Unit],
    device: torch.device,
    step: Step,
    *,
    place: int = 0,
    reference: np.ndarray | None = None,
) -> Batch:
    """Put units into one packed row.

    Args:
        units: what to pack; each row has at least one token.
        device: where the tensors go.
        step: the totals of the whole optimiser step.
        place: where these units' rows begin in what the step surveyed.
        reference: (S,) float32, what the reference model gave their rows.
    """
    rows = [row for unit in units for row in unit.rows]
    lengths = [len(row) for row in rows]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    weights = np.concatenate([row.weights for row in rows]).astype(np.float32)
    weights[bounds[:-1]] = 0
    labelled = np.flatnonzero(weights)
    ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
    positions = np.concatenate([np.arange(n) for n in lengths])
    documents = np.repeat(np.arange(len(rows)), lengths)
    segments = np.concatenate([(np.arange(len(r)) >= r.second) & (r.second > 0) for r in rows])
    owners = np.repeat(np.arange(len(units)), [len(unit.rows) for unit in units])

    old = [unit.logps for unit in units if unit.logps is not None]

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
        documents=send(documents[labelled]),
        units=send(owners),
        values=send(np.asarray([unit.value for unit in units], np.float32)),
        segments=send(segments.astype(np.int64)),
        step=step,
        place=place,
        reference=None if reference is None else send(reference.astype(np.float32)),
        old=send(np.concatenate(old)) if len(old) == len(units) else None,
    )
