"""A model's facts, from its config and weight headers or from the catalog, without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UserError
from dialoop.models import catalog, checkpoint, sources
from dialoop.models.load import base_of

if TYPE_CHECKING:
    from pathlib import Path

    from dialoop.models.spec import ModelFacts


def facts(folder: Path) -> ModelFacts:
    """The facts of a checkpoint; of the base model, for an adapter.

    Raises:
        UserError: the folder is no checkpoint, or a file in it is damaged.
    """
    if checkpoint.is_adapter(folder):
        folder = base_of(folder)
    config = checkpoint.read_json(folder / "config.json")
    described = _shape(config, folder / "config.json").facts()
    tensors = [e for file in checkpoint.weight_files(folder) for e in checkpoint.entries(file)]
    if "quantization_config" in config:
        return replace(described, weight_bytes=sum(e.num_bytes for e in tensors))
    return replace(
        described,
        num_parameters=sum(e.num_elements for e in tensors),
        weight_bytes=sum(e.num_bytes for e in tensors),
    )


def facts_of(reference: str) -> ModelFacts:
    """The facts of a model by any reference, its weights on this machine or not.

    Raises:
        UserError: the name is unknown, or is no short name and the model is not here.
    """
    if (folder := sources.cached(reference)) is not None:
        return facts(folder)
    if (known := catalog.find(reference)) is not None:
        return known.shape.facts()
    raise UserError(
        f"nothing is known of model `{reference}` before it is on this machine",
        hint=f"run `dialoop models pull {reference}`",
    )


def _shape(config: dict[str, Any], path: Path) -> catalog.Shape:
    text = config.get("text_config", config)
    try:
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        return catalog.Shape(
            family=config["model_type"],
            num_layers=text["num_hidden_layers"],
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or hidden // heads,
            intermediate_size=text["intermediate_size"],
            vocab_size=text["vocab_size"],
            tied_embeddings=text.get("tie_word_embeddings", False),
            max_positions=text["max_position_embeddings"],
            qkv_bias=text.get("attention_bias", False) or config["model_type"] == "qwen2",
            bias=text.get("mlp_bias", False),
            qk_norm=config["model_type"] == "qwen3",
        )
    except KeyError as error:
        raise UserError(
            f"`{path}` does not say {error}", hint="give a decoder-only language model"
        ) from error
