"""All-to-all before and after attention: each rank computes whole rows for some of the heads.

Best for many key/value heads. Source: DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from dialoop.train.kernels.block_attention import Block, attend
from dialoop.train.parallel import spans
from dialoop.train.parallel.sequence import SequenceMethod
from dialoop.train.parallel.ulysses_heads import to_heads, to_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.parallel.mesh import SequenceRanks
    from dialoop.train.parallel.spans import Spans


class Ulysses(SequenceMethod):
    """Share out the heads."""

    @override
    def split(self, num_tokens: int, ranks: SequenceRanks) -> list[Spans]:
        """Equal runs."""
        return spans.contiguous(num_tokens, ranks.whole.size)

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
        """Whole rows of this rank's heads."""
        lengths = [spans.length(part) for part in self.split(bounds[-1], ranks)]
        q, k, v = to_heads(query, key, value, lengths, ranks.whole)
        out = attend(q, k, v, Block(bounds, bounds), scale)  # (h, T, D)
        return to_tokens(out, query.shape[0], lengths, ranks.whole)
