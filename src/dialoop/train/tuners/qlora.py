"""Low-rank adapters on a 4-bit base. Source: Dettmers et al. 2023, arXiv:2305.14314."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.train.adapter import Adapter

if TYPE_CHECKING:
    from dialoop.models.spec import ModelFacts

NF4_BITS = 4.127
"""Bits a weight with double quantisation: 4, and 8/64 + 32/(64 * 256) of scales (section 3)."""


class Qlora(Adapter, frozen=True):
    """Train low-rank updates on a base stored in 4 bits (NF4, double quantisation)."""

    kind: Literal["qlora"] = "qlora"

    quantization: ClassVar[Literal["nf4"] | None] = "nf4"

    @override
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """Linear layers in 4 bits; embedding and head in the compute type; float32 adapters."""
        tables = facts.vocab_size * facts.hidden_size * (1 if facts.tied_embeddings else 2)
        linear = facts.num_parameters - tables
        base = int(linear * NF4_BITS / 8) + tables * compute_bytes
        return base + 4 * self.num_trained(facts)
