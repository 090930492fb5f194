"""FP8: 8-bit floats, a scale an output for weights and one a token for activations (W8A8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from dialoop.quantize import readers, scheme
from dialoop.quantize.weightwise import Weightwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from dialoop.quantize.methods import Shapes
    from dialoop.quantize.storage import Stored


class Fp8(Weightwise, frozen=True):
    """8-bit floats (e4m3); activations are scaled as they come, token by token."""

    kind: Literal["fp8"] = "fp8"
    default_bits: ClassVar[int] = 8

    @override
    def refuse(self, shapes: Shapes) -> None:
        del shapes

    @override
    def store(self, weight: Tensor, dtype: torch.dtype, bits: int) -> Stored:
        del bits
        from dialoop.quantize.storage import fp8_channels

        return fp8_channels(weight, dtype)

    @override
    def bits_a_weight(self, bits: int) -> float:
        return float(bits)

    @override
    def readers(self, bits: tuple[int, ...]) -> tuple[readers.Reader, ...]:
        del bits
        return readers.fp8()

    @override
    def config(self, bits: Mapping[str, int], kept: list[str]) -> dict[str, Any]:
        part = scheme.Part(
            tuple(bits),
            scheme.Numbers(8, "float", "channel"),
            scheme.Numbers(8, "float", "token", is_dynamic=True),
        )
        return scheme.compressed_tensors([part], "float-quantized", kept)
