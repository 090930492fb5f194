"""INT8 weights: 8 bits a weight in groups, activations as they are (W8A16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.quantize import scheme
from dialoop.quantize.grouped import Grouped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.quantize.source import Layer, Part
    from dialoop.quantize.storage import Stored


class Int8Weight(Grouped, frozen=True):
    """Weights rounded to 8 bits in groups; nearly as exact as the model, half its size."""

    kind: Literal["int8_weight"] = "int8_weight"
    symmetric: bool = True
    """Without zero points, which is what most kernels read fastest."""
    default_bits: ClassVar[int] = 8

    @property
    @override
    def needs_data(self) -> bool:
        return False

    @override
    def quantize(
        self, layer: Layer, parts: list[Part], bits: Mapping[str, int]
    ) -> dict[str, Stored]:
        del parts
        from dialoop.quantize.grid import nearest
        from dialoop.quantize.storage import packed

        stored: dict[str, Stored] = {}
        for name, number in bits.items():
            weight = layer.weight(name)
            ones = weight.new_ones(weight.shape[1])
            grid = self.grid(number)
            stored[name] = packed(nearest(weight, ones, grid, layer.dtype, search=True), number)
        return stored

    @override
    def numbers(self, bits: int) -> scheme.Numbers:
        return scheme.Numbers(bits, "int", "group", symmetric=self.symmetric, group=self.group_size)
