"""Grouped: what weight-only methods share: 4 or 8 bits, a scale for each group of inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from dialoop.quantize import readers, scheme
from dialoop.quantize.methods import Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.quantize.grid import Grid
    from dialoop.quantize.methods import Shapes


class Grouped(Method, frozen=True):
    """Integer weights in groups; activations stay as they are."""

    group_size: int = Field(default=128, ge=16)
    """Inputs that share a scale: 128 is read by every engine, 32 and 64 by most; smaller is more
    exact and larger on disk. It must divide each layer's inputs."""
    symmetric: bool
    default_bits: ClassVar[int] = 4
    other_bits: ClassVar[tuple[int, ...]] = (4, 8)

    @abstractmethod
    def numbers(self, bits: int) -> scheme.Numbers:
        """How weights of so many bits are told in the config."""

    def grid(self, bits: int) -> Grid:
        """The grid of so many bits."""
        from dialoop.quantize.grid import Grid

        return Grid(bits, self.symmetric, self.group_size)

    @override
    def refuse(self, shapes: Shapes) -> None:
        from dialoop.quantize.divide import refuse_indivisible

        for name, (_, inputs) in shapes.items():
            refuse_indivisible(name, inputs, self.group_size)

    @override
    def bits_a_weight(self, bits: int) -> float:
        zero = 0 if self.symmetric else bits
        return bits + (16 + zero) / self.group_size

    @override
    def readers(self, bits: tuple[int, ...]) -> tuple[readers.Reader, ...]:
        return readers.packed(bits, self.group_size)

    @override
    def config(self, bits: Mapping[str, int], kept: list[str]) -> dict[str, Any]:
        counted = Counter(bits.values()).most_common()
        parts = [
            scheme.Part(tuple(n for n, b in bits.items() if b == number), self.numbers(number))
            for number, _ in counted
        ]
        return scheme.compressed_tensors(parts, "pack-quantized", kept)
