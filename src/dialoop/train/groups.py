"""Parameters in groups: hidden matrices, tables and other matrices, vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dialoop.train.checkpoint import trained

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def groups_of(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters; only matrices decay. Empty groups are left out."""
    hidden = hidden_matrices(model)
    rest = {name: p for name, p in trained(model).items() if name not in hidden}
    matrices = [p for p in rest.values() if p.ndim > 1]
    vectors = [p for p in rest.values() if p.ndim <= 1]
    groups = [
        group(hidden.values(), weight_decay, is_hidden=True),
        group(matrices, weight_decay),
        group(vectors, 0.0),
    ]
    return [g for g in groups if g["params"]]


def group(
    parameters: Any, weight_decay: float, *, lr_scale: float = 1.0, is_hidden: bool = False
) -> dict[str, Any]:
    """One group as torch's optimisers take it."""
    return {
        "params": list(parameters),
        "weight_decay": weight_decay,
        "lr_scale": lr_scale,
        "is_hidden": is_hidden,
    }


def hidden_matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    """The trained matrices of the decoder that are no part of embedding or head, by name."""
    ends: list[nn.Module | None] = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = {id(p) for end in ends if end is not None for p in end.parameters()}
    inside = {id(p) for p in model.get_decoder().parameters()}
    return {
        name: p for name, p in trained(model).items() if p.ndim == 2 and id(p) in inside - tables
    }
