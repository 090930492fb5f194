"""Write a model's weights and config as transformers does, in a type of one's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def save_weights(model: PreTrainedModel, folder: Path, dtype: str) -> None:
    """Write config and weights; the model itself keeps its type.

    Args:
        model: any transformers model.
        folder: an existing folder.
        dtype: `bf16`, `fp16` or `fp32`.
    """
    import torch

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    state = {name: value.detach().to(kind) for name, value in model.state_dict().items()}
    was = model.config.dtype
    model.config.dtype = kind
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.dtype = was
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Let others read the weights, which safetensors writes for their owner alone."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
