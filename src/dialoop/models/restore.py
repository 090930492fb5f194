"""Restore: a quantized checkpoint as one with whole weights that say the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dialoop.core.files import write_text
from dialoop.models import checkpoint
from dialoop.models.load import load_model
from dialoop.models.save import make_readable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.core.device import Device
    from dialoop.models.heads import Head
    from dialoop.models.spec import Dtype


def restore(folder: Path, into: Path, *, device: Device, dtype: Dtype, head: Head) -> None:
    """Write config and weights of a quantized model in full.

    What rounds activations on their way is left out: weights alone are restored.

    Args:
        folder: the quantized checkpoint.
        into: an existing folder.
        device: where to restore.
        dtype: of the weights that are written.
        head: what the model ends in.

    Raises:
        UserError: the checkpoint is damaged, or quantized in a way that is not known.
        MachineError: a package is missing, or memory.
    """
    from safetensors.torch import save_file

    model = load_model(folder, device=device, dtype=dtype, head=head)
    save_file(_whole(model), into / checkpoint.SINGLE, {"format": "pt"})
    make_readable(into)
    config = checkpoint.read_json(folder / "config.json")
    del config["quantization_config"]
    write_text(into / "config.json", json.dumps(config, indent=2) + "\n")


def _whole(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every tensor of the model by name, linear weights as they compute."""
    from dialoop.models.adapted import dense_weight, is_linear  # noqa: PLC0415 - loads torch

    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    whole: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        path = name.split(".")
        of_linear = any(".".join(path[:-depth]) in linears for depth in (1, 2))
        if not of_linear or name.endswith(".bias"):
            whole[name] = tensor
    for name, module in linears.items():
        whole[f"{name}.weight"] = dense_weight(module)
    if model.config.tie_word_embeddings:
        whole.pop("lm_head.weight", None)
    kind = model.dtype
    return {
        name: tensor.detach().to("cpu", kind if tensor.is_floating_point() else None).contiguous()
        for name, tensor in whole.items()
    }
