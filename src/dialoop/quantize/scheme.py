"""Scheme: the `quantization_config` of a checkpoint, as compressed-tensors and others spell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VERSION = "0.19.0"
"""The compressed-tensors whose layout is written."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """How numbers of one kind are rounded, in compressed-tensors' words."""

    bits: int
    type: str
    """`int` or `float`."""
    strategy: str
    """`group`, `channel`, `block` or `token`."""
    symmetric: bool = True
    group: int | None = None
    block: tuple[int, int] | None = None
    is_dynamic: bool = False

    def spelled(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "num_bits": self.bits,
            "type": self.type,
            "symmetric": self.symmetric,
            "strategy": self.strategy,
            "group_size": self.group,
            "block_structure": None if self.block is None else list(self.block),
            "dynamic": self.is_dynamic,
            "actorder": None,
            "observer": None if self.is_dynamic else "memoryless_minmax",
            "observer_kwargs": {},
        }


@dataclass(frozen=True, slots=True)
class Part:
    """Linear layers that are rounded alike."""

    layers: tuple[str, ...]
    """Paths; the first part of a checkpoint is told as all linear layers that are not named."""
    weights: Numbers
    activations: Numbers | None = None


def compressed_tensors(parts: list[Part], layout: str, kept: list[str]) -> dict[str, Any]:
    """The config of a checkpoint in one of compressed-tensors' layouts.

    Args:
        parts: the most common one first.
        layout: `pack-quantized`, `int-quantized`, `float-quantized`.
        kept: paths of linear layers that stay as they are.
    """
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if number == 0 else list(part.layers),
            "weights": part.weights.spelled(),
            "input_activations": part.activations.spelled() if part.activations else None,
            "output_activations": None,
            "format": layout,
        }
        for number, part in enumerate(parts)
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": kept,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": VERSION,
    }
