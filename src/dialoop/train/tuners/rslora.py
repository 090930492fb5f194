"""Rank-stabilised LoRA. Source: Kalajdzievski 2023, arXiv:2312.03732, eq. 3."""

from typing import Literal

from dialoop.train.adapter import Adapter


class Rslora(Adapter, frozen=True):
    """Train low-rank updates scaled by alpha / sqrt(rank), for high ranks."""

    kind: Literal["rslora"] = "rslora"
    use_rslora: Literal[True] = True
    """What makes it rank-stabilised."""
