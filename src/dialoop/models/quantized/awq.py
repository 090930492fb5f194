"""AWQ checkpoints of the `gemm` layout. Layout: AutoAWQ 0.2, awq/modules/linear/gemm.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.models.bits import spread, unpack
from dialoop.models.quantized import Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of eight, that each four bits of a number stand for."""


class Awq(Format):
    """Groups of input columns with a scale and a zero each, four bits."""

    method = "awq"
    marks = ("qweight",)
    needed = ("qweight", "qzeros", "scales")
    parts = needed

    @override
    def __init__(self, config: Mapping[str, Any]) -> None:
        bits = config.get("bits", config.get("w_bit"))
        version = str(config.get("version", "gemm")).lower()
        if bits != 4 or version != "gemm":
            raise UserError(
                f"quantization_config: awq with {bits} bits in the layout `{version}` is not"
                " supported",
                hint="use a checkpoint of 4 bits in the layout `gemm`",
            )
        self.group = int(config.get("group_size", config.get("q_group_size", 128)))

    @override
    def dense(self, layer: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        codes, zeros = (_columns(parts[name]) for name in ("qweight", "qzeros"))
        scales = parts["scales"].float()  # (groups, E)
        group = self.group if self.group > 0 else shape[1]
        wide, narrow = (shape[1], shape[0]), (group, 1)
        return ((codes - spread(zeros, wide, narrow)) * spread(scales, wide, narrow)).T


def _columns(packed: Tensor) -> Tensor:
    """(..., E) from (..., E / 8), in the order of the columns."""
    found = unpack(packed, 4, -1).unflatten(-1, (-1, 8))
    return found[..., [ORDER.index(n) for n in range(8)]].flatten(-2)
