"""Rotary positions scaled for a longer context, in a loaded model and in its config.

The types and their formulas are transformers' (`modeling_rope_utils.py` at 5.17): linear, Chen et
al. 2023, arXiv:2306.15595; dynamic, the NTK-aware scaling of the longest document at hand; yarn,
Peng et al. 2023, arXiv:2309.00071; llama3, Grattafiori et al. 2024, arXiv:2407.21783, section 3.4.

An adapter's folder has no config of its own. The scaling that it was trained with is kept beside it
in `rope.json`, which `load_model` applies to its base.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from dialoop.core.errors import UserError
from dialoop.core.files import write_text

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

FILE = "rope.json"
RopeScaling = Literal["none", "linear", "dynamic", "yarn", "llama3"]
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Bounds of the wavelengths that are scaled in part, as Llama 3.1 has them."""


def scale(model: PreTrainedModel, kind: RopeScaling, factor: float) -> None:
    """Stretch the positions that a model can read, in place.

    Args:
        model: a model with rotary positions.
        kind: how; `none` leaves the model as it is.
        factor: positions afterwards, as a multiple of those that it was trained with.

    Raises:
        UserError: the model has no rotary positions, or they are scaled already.
    """
    if kind == "none":
        return
    config = model.config
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict) or "rope_theta" not in found:
        raise UserError(
            f"rope_scaling: a `{config.model_type}` has no rotary positions to scale",
            hint="leave --rope_scaling out",
        )
    if found.get("rope_type", "default") != "default":
        raise UserError(
            f"rope_scaling: this model's positions are scaled already ({found['rope_type']})",
            hint="leave --rope_scaling out; its config says how far it reads",
        )
    trained = config.max_position_embeddings
    wanted = {"rope_theta": found["rope_theta"], "rope_type": kind, "factor": float(factor)}
    if kind in {"yarn", "llama3"}:
        wanted["original_max_position_embeddings"] = trained
    if kind == "llama3":
        wanted |= _LLAMA3
    # transformers' dynamic type counts from the positions that the config names.
    longest = trained if kind == "dynamic" else int(trained * factor)
    _apply(model, {"rope_parameters": wanted, "max_position_embeddings": longest})


def longest(model: PreTrainedModel) -> int:
    """Tokens that a model can read."""
    config = model.config
    found = getattr(config, "rope_parameters", None) or {}
    stretch = found.get("factor", 1.0) if found.get("rope_type") == "dynamic" else 1.0
    return int(config.max_position_embeddings * stretch)


def save(model: PreTrainedModel, folder: Path) -> None:
    """Keep a model's scaling beside an adapter."""
    config = model.config
    facts = {
        "rope_parameters": config.rope_parameters,
        "max_position_embeddings": config.max_position_embeddings,
    }
    write_text(folder / FILE, json.dumps(facts, indent=2) + "\n")


def load(model: PreTrainedModel, folder: Path) -> None:
    """Scale a base model as its adapter was trained, where the adapter says so.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        wanted = {name: facts[name] for name in ("rope_parameters", "max_position_embeddings")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"`{path}` is damaged: {error}", hint="copy the adapter again") from error
    _apply(model, wanted)


def _apply(model: PreTrainedModel, facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        setattr(model.config, name, value)
    for name, module in list(model.named_modules()):
        if hasattr(module, "inv_freq") and hasattr(module, "rope_type"):
            device = module.inv_freq.device
            model.set_submodule(name, type(module)(model.config).to(device))  # pyright: ignore[reportCallIssue, reportArgumentType]
