"""Every rank gathers the keys and values of all; queries stay where they are.

The cheapest way where key/value heads are few, with no condition on the number of heads. The
backward pass reduce-scatters. Source: Llama 3, arXiv:2407.21783, section 3.3.2 (context
parallelism by all-gather), with its head-tail split.

H is query heads, K key/value heads, T the tokens of the row, t this rank's, D the head's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from dialoop.train.kernels.block_attention import Block, attend
from dialoop.train.parallel import spans
from dialoop.train.parallel.collectives import gather_tokens, reorder
from dialoop.train.parallel.sequence import SequenceMethod

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.parallel.mesh import SequenceRanks
    from dialoop.train.parallel.spans import Spans


class GatherKv(SequenceMethod):
    """Gather keys and values."""

    @override
    def split(self, num_tokens: int, ranks: SequenceRanks) -> list[Spans]:
        """Front and back, so that all have the same work."""
        return spans.zigzag(num_tokens, ranks.whole.size)

    @override
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: tuple[int, ...],
        ranks: SequenceRanks,
        scale: float | None,
    ) -> Tensor:
        """Each span's queries see the gathered keys from their first document's start."""
        held = self.split(bounds[-1], ranks)
        lengths = [spans.length(part) for part in held]
        both = gather_tokens(torch.cat([key, value]), lengths, ranks.whole.group)  # (2K, T, D)
        both = reorder(both, [span for part in held for span in part])
        k, v = both.chunk(2)
        outputs = []
        for span, place in spans.places(held[ranks.whole.rank]):
            if span[0] == span[1]:
                continue
            seen = spans.window(span, bounds)
            keys = slice(*seen.keys)
            block = Block(seen.query_bounds, seen.key_bounds)
            outputs.append(attend(query[:, slice(*place)], k[:, keys], v[:, keys], block, scale))
        return torch.cat(outputs, dim=1) if outputs else query + 0 * both.sum()
