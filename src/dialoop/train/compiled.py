"""Layers compiled by torch: the same numbers from fewer and larger kernels."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from dialoop.core.errors import MachineError
from dialoop.models import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPILERS = ("g++", "clang++", "c++")


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every layer of a model at its first use, in place.

    Shapes are symbolic, so that packed rows of any length take one compilation. Attention is left
    out: it is one kernel already, and depends on where documents end.

    Args:
        model: with packed attention, on the device where it will run.

    Raises:
        MachineError: there is no C++ compiler here.
    """
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not any(map(shutil.which, COMPILERS)):
        raise MachineError(
            f"compile: none of {', '.join(COMPILERS)} is on this machine",
            hint="install one, or leave --compile out",
        )
    attention.register(torch.compiler.disable(attention.packed_attention))
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True)
