"""GPTQ checkpoints. Layout: `QuantLinear` of AutoGPTQ 0.7 and GPTQModel, qlinear/torch.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.models.bits import unpack
from dialoop.models.quantized import Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Gptq(Format):
    """Groups of input columns with a scale and a zero each; columns in any order."""

    method = "gptq"
    marks = ("qweight",)
    needed = ("qweight", "qzeros", "scales", "g_idx")
    parts = needed

    @override
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.bits = int(config.get("bits", 0))
        if self.bits not in {2, 4, 8}:
            raise UserError(
                f"quantization_config: gptq with {self.bits} bits is not supported",
                hint="use a checkpoint of 2, 4 or 8 bits",
            )
        is_first = config.get("checkpoint_format", "gptq") != "gptq_v2"
        self.missing = 1 if is_first else 0  # the first version stores zeros less one

    @override
    def dense(self, layer: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        codes = unpack(parts["qweight"], self.bits, 0)  # (D, E)
        zeros = unpack(parts["qzeros"], self.bits, -1) + self.missing  # (groups, E)
        zeros = zeros & ((1 << self.bits) - 1)
        group = parts["g_idx"].long()  # (D,)
        scales = parts["scales"].float()[group]  # (D, E)
        return ((codes - zeros[group]) * scales).T
