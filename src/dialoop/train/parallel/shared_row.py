"""A packed row that several ranks compute: each its tokens, and every answer whole on all of them.

What an objective sees is the whole row on every rank, so that no objective knows of the split. The
gradient of what all of them hold sums over the ranks.

T is the tokens of the row, t this rank's, N the labelled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dialoop.core.errors import UserError
from dialoop.train.parallel import spans
from dialoop.train.parallel.collectives import gather_tokens, reorder, sum_over_ranks

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.batch import Batch
    from dialoop.train.parallel.mesh import SequenceRanks
    from dialoop.train.parallel.sequence import SequenceMethod


@dataclass(frozen=True, slots=True)
class SharedRows:
    """How rows are shared out."""

    kind: str
    method: SequenceMethod
    ranks: SequenceRanks

    def row(self, batch: Batch) -> SharedRow:
        """One of them."""
        return SharedRow(self, batch)


class SharedRow:
    """One packed row, and this rank's part of it.

    Args:
        rows: how it is shared out.
        batch: the whole row, the same on all its ranks.
    """

    def __init__(self, rows: SharedRows, batch: Batch) -> None:
        self._rows, self._batch = rows, batch
        self._held = rows.method.split(batch.num_tokens, rows.ranks)

    @cached_property
    def tokens(self) -> Tensor:
        """(t,) int64 places of this rank's tokens in the row."""
        mine = spans.indices(self._held[self._rows.ranks.whole.rank])
        return torch.tensor(mine, dtype=torch.int64, device=self._batch.ids.device)

    @cached_property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """Which labelled tokens this rank predicts, (n,), and from which of its own states."""
        place = torch.full_like(self._batch.ids, -1)  # (T,)
        place[self.tokens] = torch.arange(len(self.tokens), device=place.device)
        own = place[self._batch.rows]  # (N,)
        which = (own >= 0).nonzero()[:, 0]
        return which, own[which]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        *,
        dropout: float,
        is_windowed: bool,
    ) -> Tensor:
        """(1, H, t, D) and twice (1, K, t, D) to (1, t, H, D).

        Raises:
            UserError: the model asks for dropout or a window, which this does not know.
        """
        _refuse(dropout=dropout, is_windowed=is_windowed)
        out = self._rows.method.attend(
            query[0], key[0], value[0], self._batch.bounds, self._rows.ranks, scale
        )
        return out.transpose(0, 1)[None].contiguous()

    def all_labelled(self, values: Tensor) -> Tensor:
        """(n,) of this rank's labelled tokens to (N,) of all."""
        mine = values.new_zeros(len(self._batch.rows)).index_copy(0, self.labelled[0], values)
        return sum_over_ranks(mine, self._rows.ranks.whole.group)

    def all_tokens(self, states: Tensor) -> Tensor:
        """(t, D) of this rank's tokens to (T, D)."""
        lengths = [spans.length(part) for part in self._held]
        found = gather_tokens(states[None], lengths, self._rows.ranks.whole.group)
        return reorder(found, [span for part in self._held for span in part])[0]


def _refuse(*, dropout: float, is_windowed: bool) -> None:
    if dropout or is_windowed:
        what = "dropout of attention weights" if dropout else "a sliding window"
        raise UserError(
            f"sequence_parallel does not know {what}, which the model asks for",
            hint="use --sequence_parallel 1",
        )
