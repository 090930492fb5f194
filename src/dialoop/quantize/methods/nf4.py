"""NF4: 4-bit normal floats in blocks of 64 as bitsandbytes keeps them. Dettmers et al. 2023."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.quantize import readers
from dialoop.quantize.weightwise import Weightwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from dialoop.quantize.methods import Shapes
    from dialoop.quantize.storage import Stored

BLOCK = 64


class Nf4(Weightwise, frozen=True):
    """4-bit normal floats with scales that are rounded, too: what `--tuner qlora` trains on.

    Source: QLoRA, arXiv:2305.14314, section 3.
    """

    kind: Literal["nf4"] = "nf4"
    default_bits: ClassVar[int] = 4
    extra: ClassVar[str] = "qlora"

    @property
    @override
    def packages(self) -> tuple[str, ...]:
        return ("bitsandbytes", "accelerate")

    @override
    def refuse(self, shapes: Shapes) -> None:
        for name, (outputs, inputs) in shapes.items():
            if outputs * inputs % BLOCK:
                raise UserError(
                    f"blocks of {BLOCK} do not divide the {outputs * inputs} weights of `{name}`",
                    hint=f"leave the layer as it is by --keep '{name}'",
                )

    @override
    def store(self, weight: Tensor, dtype: torch.dtype, bits: int) -> Stored:
        del bits
        from dialoop.quantize.storage import nf4

        return nf4(weight, dtype)

    @override
    def bits_a_weight(self, bits: int) -> float:
        return bits + 8 / BLOCK + 32 / (BLOCK * 256)

    @override
    def readers(self, bits: tuple[int, ...]) -> tuple[readers.Reader, ...]:
        del bits
        return readers.nf4()

    @override
    def config(self, bits: Mapping[str, int], kept: list[str]) -> dict[str, Any]:
        del bits
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": kept,
        }
