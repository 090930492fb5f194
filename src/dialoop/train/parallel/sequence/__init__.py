"""Sequence parallelism: one file each; how the tokens of a row are split, and how they attend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.parallel.mesh import SequenceRanks
    from dialoop.train.parallel.spans import Spans


class SequenceMethod(ABC):
    """Attention over a packed row whose tokens several ranks hold."""

    @abstractmethod
    def split(self, num_tokens: int, ranks: SequenceRanks) -> list[Spans]:
        """The tokens of each rank of the row, which hold each token once."""

    @abstractmethod
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: tuple[int, ...],
        ranks: SequenceRanks,
        scale: float | None,
    ) -> Tensor:
        """Causal attention within documents; every rank of the row takes part.

        Args:
            query: (H, t, D) of this rank's tokens, in the order of its spans.
            key: (K, t, D).
            value: (K, t, D).
            bounds: document boundaries of the whole row, 0 first and T last.
            ranks: of the row.
            scale: factor of the scores; 1/sqrt(D) when None.

        Returns:
            (H, t, D), equal to what one process computes.
        """
