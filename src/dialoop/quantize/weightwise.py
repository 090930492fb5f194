"""Weightwise: what methods share that round each weight by itself and look at no data."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from typing_extensions import override

from dialoop.quantize.methods import Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from dialoop.quantize.source import Layer, Part
    from dialoop.quantize.storage import Stored


class Weightwise(Method, frozen=True):
    """Every weight is rounded on its own."""

    @property
    @override
    def needs_data(self) -> bool:
        return False

    @abstractmethod
    def store(self, weight: Tensor, dtype: torch.dtype, bits: int) -> Stored:
        """Round a weight (E, D) float32 of a checkpoint in `dtype`."""

    @override
    def quantize(
        self, layer: Layer, parts: list[Part], bits: Mapping[str, int]
    ) -> dict[str, Stored]:
        del parts
        return {
            name: self.store(layer.weight(name), layer.dtype, number)
            for name, number in bits.items()
        }
