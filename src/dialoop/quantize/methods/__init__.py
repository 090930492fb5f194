"""Methods: one file each; how a layer's weights are rounded and how that is written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from dialoop.quantize.readers import Reader
    from dialoop.quantize.source import Layer, Part
    from dialoop.quantize.storage import Stored

Shapes = Mapping[str, tuple[int, int]]
"""(outputs, inputs) of the linear layers that are to be rounded, by path."""


class Method(Option, frozen=True):
    """Rounds the linear layers between embedding and head."""

    default_bits: ClassVar[int]
    other_bits: ClassVar[tuple[int, ...]] = ()
    """What `precisions` may give a layer in place of `default_bits`."""
    extra: ClassVar[str] = "quant"
    """The extra of dialoop that brings `packages`."""

    @property
    def needs_data(self) -> bool:
        """Whether it looks at what the layers read."""
        return True

    @property
    def packages(self) -> tuple[str, ...]:
        """What transformers needs to read the result, for the check."""
        return ("compressed_tensors", "accelerate")

    @abstractmethod
    def refuse(self, shapes: Shapes) -> None:
        """Raise on a model that cannot be rounded so.

        Raises:
            UserError: names the layer, and what would do.
        """

    @abstractmethod
    def quantize(
        self, layer: Layer, parts: list[Part], bits: Mapping[str, int]
    ) -> dict[str, Stored]:
        """Round a layer and let the calibration rows through it.

        Args:
            layer: with its whole weights; on return it computes with the rounded ones.
            parts: calibration rows before the layer, and after it on return; empty without data.
            bits: of each linear layer that is to be rounded, by its name in the layer.

        Returns:
            What is written for each of them.
        """

    @abstractmethod
    def bits_a_weight(self, bits: int) -> float:
        """Storage of a weight, its scales included."""

    @abstractmethod
    def readers(self, bits: tuple[int, ...]) -> tuple[Reader, ...]:
        """Which engines read the result.

        Args:
            bits: that occur in it.
        """

    @abstractmethod
    def config(self, bits: Mapping[str, int], kept: list[str]) -> dict[str, Any]:
        """The checkpoint's `quantization_config`.

        Args:
            bits: of each rounded layer, by path.
            kept: paths of linear layers that stay as they are.
        """
