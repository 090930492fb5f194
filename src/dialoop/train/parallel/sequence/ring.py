"""Keys and values travel round a ring; a rank never holds more than two ranks' tokens.

For rows whose gathered keys do not fit, on any number of heads. Source: Ring Attention, Liu et al.
2023, arXiv:2310.01889.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from dialoop.train.parallel import ring_blocks, spans
from dialoop.train.parallel.sequence import SequenceMethod

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.parallel.mesh import SequenceRanks
    from dialoop.train.parallel.spans import Spans


class Ring(SequenceMethod):
    """Pass keys and values round."""

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
        """One block of keys after another."""
        held = self.split(bounds[-1], ranks)
        return ring_blocks.attend(query, key, value, bounds, held, ranks.whole, scale)
