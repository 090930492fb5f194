"""FP8 in blocks: 8-bit floats with a scale a block of 128 by 128. DeepSeek-AI 2024, section 3.3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.quantize import readers, scheme
from dialoop.quantize.weightwise import Weightwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from dialoop.quantize.methods import Shapes
    from dialoop.quantize.storage import Stored

BLOCK = 128


class Fp8Block(Weightwise, frozen=True):
    """8-bit floats in blocks of 128 by 128; activations in groups of 128 as they come.

    Source: DeepSeek-V3 report, arXiv:2412.19437, section 3.3.2.
    """

    kind: Literal["fp8_block"] = "fp8_block"
    format: Literal["compressed-tensors", "fp8"] = "compressed-tensors"
    """How it is written: as compressed-tensors, or as Hugging Face's `quant_method: fp8`, which
    LMDeploy reads, too."""
    default_bits: ClassVar[int] = 8

    @property
    @override
    def packages(self) -> tuple[str, ...]:
        return ("accelerate",) if self.format == "fp8" else super().packages

    @override
    def refuse(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            for size, what in zip(shape, ("outputs", "inputs"), strict=True):
                if size % BLOCK:
                    raise UserError(
                        f"blocks of {BLOCK} do not divide the {size} {what} of `{name}`",
                        hint=f"use --method fp8, or leave the layer as it is by --keep '{name}'",
                    )

    @override
    def store(self, weight: Tensor, dtype: torch.dtype, bits: int) -> Stored:
        del bits
        from dialoop.quantize.storage import fp8_blocks

        name = "weight_scale_inv" if self.format == "fp8" else "weight_scale"
        return fp8_blocks(weight, dtype, BLOCK, scale_name=name)

    @override
    def bits_a_weight(self, bits: int) -> float:
        return bits + 32 / BLOCK**2

    @override
    def readers(self, bits: tuple[int, ...]) -> tuple[readers.Reader, ...]:
        del bits
        return readers.fp8_block(is_hugging_face=self.format == "fp8")

    @override
    def config(self, bits: Mapping[str, int], kept: list[str]) -> dict[str, Any]:
        if self.format == "fp8":
            return {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK],
                "modules_to_not_convert": kept,
            }
        part = scheme.Part(
            tuple(bits),
            scheme.Numbers(8, "float", "block", block=(BLOCK, BLOCK)),
            scheme.Numbers(8, "float", "group", group=BLOCK, is_dynamic=True),
        )
        return scheme.compressed_tensors([part], "float-quantized", kept)
