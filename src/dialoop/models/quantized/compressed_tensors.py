"""Checkpoints of the `compressed-tensors` package, as llm-compressor and dialoop write them.

Layout: compressed-tensors 0.17, compressors/ and quantization/utils.
Activations are computed with as they are: quantizing them is the serving engine's part.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.models.bits import spread, unpack
from dialoop.models.quantized import Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LAYOUTS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


class CompressedTensors(Format):
    """Packed or 8-bit numbers, with scales of the tensor, of rows, groups or blocks."""

    method = "compressed-tensors"
    marks = ("weight_packed", "weight_scale")
    needed = ("weight_scale",)
    parts = (
        "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape",
        "weight_g_idx", "input_scale", "input_zero_point",
    )  # fmt: skip

    @override
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.groups: list[tuple[list[str], dict[str, Any]]] = []
        for group in config.get("config_groups", {}).values():
            layout = group.get("format") or config.get("format")
            weights = group.get("weights") or {}
            if layout not in LAYOUTS or weights.get("num_bits") not in {2, 4, 8}:
                raise UserError(
                    f"quantization_config: the layout `{layout}` with"
                    f" {weights.get('num_bits')} bits is not supported",
                    hint=f"use a checkpoint of 2, 4 or 8 bits in {', '.join(LAYOUTS)}",
                )
            self.groups.append((list(group.get("targets", ["Linear"])), weights))

    @override
    def dense(self, layer: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        options = self._options(layer)
        bits, is_float = options["num_bits"], options.get("type") == "float"
        signed = 0 if is_float else 1 << (bits - 1)  # packed numbers are stored without sign
        if (packed := parts.get("weight_packed")) is not None:
            codes = (unpack(packed, bits, -1)[:, : shape[1]] - signed).float()
        else:
            codes = parts["weight"].float()
        scales, zeros = parts["weight_scale"].float(), parts.get("weight_zero_point")
        if zeros is not None:
            is_packed = zeros.dtype.itemsize == 4 and packed is not None
            zeros = unpack(zeros, bits, 0)[: len(scales)] - signed if is_packed else zeros
            zeros = zeros.float()
        order = parts.get("weight_g_idx")
        if order is not None and int(order.min()) >= 0:
            columns = order.long()  # (D,)
            scales = scales[:, columns]
            zeros = None if zeros is None else zeros[:, columns]
            return (codes if zeros is None else codes - zeros) * scales
        block = self._block(options, shape)
        if zeros is not None and options.get("symmetric") is not True:
            codes = codes - spread(_matrix(zeros), shape, block)
        return codes * spread(_matrix(scales), shape, block)

    def _block(self, options: Mapping[str, Any], shape: tuple[int, int]) -> tuple[int, int]:
        strategy = options.get("strategy")
        if strategy == "block":
            return tuple(options["block_structure"])
        if strategy == "group":
            return 1, int(options["group_size"])
        return (1 if strategy == "channel" else shape[0]), shape[1]

    def _options(self, layer: str) -> dict[str, Any]:
        """What the config says of a layer's weights: by name, by pattern, by class."""
        for targets, weights in self.groups:
            for target in targets:
                pattern = target.removeprefix("re:")
                is_named = target != pattern and re.match(pattern, layer) is not None
                if is_named or layer == target or layer.endswith(f".{target}"):
                    return weights
        for targets, weights in self.groups:
            if "Linear" in targets:
                return weights
        raise UserError(
            f"quantization_config: no group of layers holds `{layer}`, which has a scale",
            hint="the checkpoint's config.json does not fit its weights; pull it again",
        )


def _matrix(scales: Tensor) -> Tensor:
    """(rows, columns) of a scale, or a row of them."""
    return scales.reshape(1, 1) if scales.ndim == 0 else scales.reshape(len(scales), -1)
