"""Read a checkpoint that is quantized already: transformers loads, our layers compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.models import checkpoint
from dialoop.models.quantized import formats
from dialoop.models.quantized_layer import QuantizedLinear

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.models.checkpoint import Entry
    from dialoop.models.quantized import Format

METHOD = "dialoop"
"""Ours among transformers' quantizers."""


def stored_config(folder: Path, method: str) -> StoredConfig:
    """What makes `from_pretrained` read a folder's quantized layers as ours.

    Raises:
        UserError: a method or a variant of it that is not supported.
    """
    known = formats()
    if method not in known:
        raise UserError(
            f"`{folder}` is quantized by `{method}`, which is not supported",
            hint=f"give a checkpoint in full, or quantized by {', '.join(known)}, bitsandbytes",
        )
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(StoredQuantizer)
    config = checkpoint.read_json(folder / "config.json")["quantization_config"]
    files = checkpoint.weight_files(folder)
    entries = tuple(entry for file in files for entry in checkpoint.entries(file))
    return StoredConfig(known[method](config), entries)


class StoredConfig(QuantizationConfigMixin):
    """Tells transformers that a checkpoint's layers are ours.

    Args:
        meaning: the checkpoint's format.
        entries: all of its tensors.
    """

    def __init__(self, meaning: Format, entries: tuple[Entry, ...]) -> None:
        self.quant_method: Any = METHOD
        self.meaning, self.entries = meaning, entries

    @override
    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}


class StoredQuantizer(HfQuantizer):
    """Puts quantized layers in the place of plain ones before transformers reads the weights."""

    quantization_config: StoredConfig

    @override
    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        place(model, self.quantization_config.entries, self.quantization_config.meaning)

    @override
    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False

    @property
    @override
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True


def place(model: PreTrainedModel, entries: Iterable[Entry], meaning: Format) -> None:
    """Replace the linear layers that a checkpoint stores quantized, in place.

    Raises:
        UserError: it stores something quantized that is no linear layer of the model.
    """
    stored: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        layer, _, part = entry.name.rpartition(".")
        if part in meaning.parts:
            stored.setdefault(layer, {})[part] = entry
    prefix = f"{model.base_model_prefix}."
    for layer, parts in stored.items():
        if not any(mark in parts for mark in meaning.marks):
            continue
        if lacking := [name for name in meaning.needed if name not in parts]:
            raise UserError(
                f"damaged checkpoint: `{layer}` lacks {', '.join(lacking)}",
                hint="copy or pull the checkpoint again",
            )
        names = (layer, layer.removeprefix(prefix), prefix + layer)
        found = {name: module for name, module in model.named_modules() if name in names}
        linear = {n: m for n, m in found.items() if isinstance(m, nn.Linear)}
        if linear:
            name, plain = next(iter(linear.items()))
            model.set_submodule(name, QuantizedLinear(layer, plain, parts, meaning))
        elif found or layer.startswith(prefix):
            raise UserError(
                f"`{layer}` is quantized by {meaning.method} and is no linear layer of this model",
                hint="use a checkpoint whose linear layers alone are quantized",
            )
