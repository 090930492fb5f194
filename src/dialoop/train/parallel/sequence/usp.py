"""Ulysses within neighbours, a ring between them: heads are shared out and keys travel.

Source: USP, Fang and Zhao 2024, arXiv:2405.07719, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from dialoop.train.parallel import ring_blocks, spans
from dialoop.train.parallel.sequence import SequenceMethod
from dialoop.train.parallel.ulysses_heads import to_heads, to_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.parallel.mesh import SequenceRanks
    from dialoop.train.parallel.spans import Spans


class Usp(SequenceMethod):
    """Share out the heads within neighbours, pass keys and values between them."""

    @override
    def split(self, num_tokens: int, ranks: SequenceRanks) -> list[Spans]:
        """Each ring place has a front and a back, which its neighbours share in equal runs."""
        parts = spans.zigzag(num_tokens, ranks.ring.size)
        return [run for part in parts for run in spans.subdivide(part, ranks.ulysses.size)]

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
        """The ring runs over some heads of all tokens of the neighbours."""
        held = spans.zigzag(bounds[-1], ranks.ring.size)
        runs = spans.subdivide(held[ranks.ring.rank], ranks.ulysses.size)
        lengths = [spans.length(run) for run in runs]
        q, k, v = to_heads(query, key, value, lengths, ranks.ulysses)
        out = ring_blocks.attend(q, k, v, bounds, held, ranks.ring, scale)  # (h, T/R, D)
        return to_tokens(out, query.shape[0], lengths, ranks.ulysses)
