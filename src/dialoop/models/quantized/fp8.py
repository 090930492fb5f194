"""FP8 in blocks, as transformers' `FineGrainedFP8Config` and DeepSeek-V3 store it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.models.bits import spread
from dialoop.models.quantized import Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Fp8(Format):
    """Eight-bit floats with a scale a block of the matrix."""

    method = "fp8"
    marks = ("weight_scale_inv",)
    needed = ("weight", "weight_scale_inv")
    parts = needed

    @override
    def __init__(self, config: Mapping[str, Any]) -> None:
        block = config.get("weight_block_size")
        if not isinstance(block, list | tuple) or len(block) != 2:
            raise UserError(
                f"quantization_config: fp8 with weight_block_size {block} is not supported",
                hint="use a checkpoint with a scale for each block, such as [128, 128]",
            )
        self.block = int(block[0]), int(block[1])

    @override
    def dense(self, layer: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        scales = spread(parts["weight_scale_inv"].float(), shape, self.block)
        return parts["weight"].float() * scales
