"""Storage: rounded weights as tensors of a checkpoint, in the layouts that engines read.

The layouts are those of compressed-tensors 0.17 to 0.19: `pack-quantized` (b-bit codes, offset to
be unsigned, lie in int32 words from the lowest bit on; zero points are packed along the outputs),
`int-quantized`, `float-quantized`; the block layout of Hugging Face's `fp8`; and bitsandbytes' nf4.
E outputs, D inputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dialoop.quantize.grid import FP8, FP8_MAX

if TYPE_CHECKING:
    from dialoop.quantize.grid import Rounded

WORD = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """A linear layer's weight as it is written."""

    tensors: dict[str, Tensor]
    """By their names below the layer: `weight_packed`, `weight_scale`, ..."""
    dense: Tensor
    """(E, D) the weight that readers compute with."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Signed codes (R, C) in int32 words (R, ceil(C * bits / 32)).

    Args:
        codes: int8.
        bits: 4 or 8, which divide a word.
    """
    a_word = WORD // bits
    unsigned = codes.to(torch.int32) + (1 << (bits - 1))
    unsigned = F.pad(unsigned, (0, -codes.shape[1] % a_word)).unflatten(1, (-1, a_word))
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32, device=codes.device)
    return (unsigned << shifts).sum(-1, dtype=torch.int32)


def packed(weight: Rounded, bits: int) -> Stored:
    """`pack-quantized`: codes in words."""
    tensors = {
        "weight_packed": pack(weight.codes, bits),
        "weight_scale": weight.scale.contiguous(),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if weight.zero is not None:
        tensors["weight_zero_point"] = pack(weight.zero.T, bits).T.contiguous()
    return Stored(tensors, weight.dense())


def bytes_of(weight: Rounded) -> Stored:
    """`int-quantized` or `float-quantized`: a byte a weight, one scale an output."""
    tensors = {"weight": weight.codes.contiguous(), "weight_scale": weight.scale.contiguous()}
    return Stored(tensors, weight.dense())


def fp8_channels(weight: Tensor, dtype: torch.dtype) -> Stored:
    """`float-quantized` with a scale an output; `weight` is (E, D) float32."""
    scale = _fp8_scale(weight.abs().amax(1, keepdim=True), dtype)  # (E, 1)
    codes = (weight / scale.float()).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    dense = (codes.float() * scale.float()).to(dtype)
    return Stored({"weight": codes, "weight_scale": scale}, dense)


def fp8_blocks(weight: Tensor, dtype: torch.dtype, size: int, *, scale_name: str) -> Stored:
    """FP8 with a float32 scale a block of `size` by `size`; `weight` is (E, D) float32."""
    blocks = weight.unflatten(0, (-1, size)).unflatten(2, (-1, size))  # (E/n, n, D/n, n)
    scale = _fp8_scale(blocks.abs().amax((1, 3)), torch.float32)  # (E/n, D/n)
    wide = scale[:, None, :, None]
    codes = (blocks / wide).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    dense = (codes.float() * wide).to(dtype).flatten(2).flatten(0, 1)
    return Stored({"weight": codes.flatten(2).flatten(0, 1), scale_name: scale}, dense)


def _fp8_scale(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """What brings the largest number to the end of the range; 1 where all are 0."""
    scale = (largest / FP8_MAX).to(dtype)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def nf4(weight: Tensor, dtype: torch.dtype) -> Stored:
    """Bitsandbytes' nf4 in blocks of 64 with double quantization; `weight` is (E, D) float32."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # noqa: PLC0415 - an extra

    codes, state = quantize_4bit(
        weight.to(dtype), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    tensors = {"weight": codes} | {
        f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()
    }
    return Stored(tensors, dequantize_4bit(codes, state).to(dtype))
