"""What becomes of activations between the forward and the backward pass.

- `none`: all are kept.
- `selective`: results of matrix products and of attention are kept, the cheap rest is recomputed.
- `full`: only each layer's input is kept, the layer is recomputed.
- `offload`: as `full`, with the layers' inputs in the host's memory.

Sources: Chen et al. 2016, arXiv:1604.06174; selective: torch.utils.checkpoint's policies (2.4).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dialoop.core.device import DeviceKind
    from dialoop.models.spec import ModelFacts

Mode = Literal["none", "selective", "full", "offload"]

COSTLY = ("mm", "linear", "attention", "attn")
"""Operators whose results are worth keeping, by parts of their names."""


def recompute(model: PreTrainedModel, mode: Mode, kind: DeviceKind) -> None:
    """Let a model's layers forget what is cheap to compute again, in place.

    Args:
        model: the model.
        mode: what is kept.
        kind: of the device that it computes on.

    Raises:
        UserError: the model's class cannot, or `offload` is asked of a model on the CPU.
    """
    if mode == "none":
        return
    if mode == "offload" and kind == "cpu":
        raise UserError(
            "activation_checkpointing: `offload` moves activations to the CPU, where this model is",
            hint="use `full`",
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    try:
        model.gradient_checkpointing_enable(options, offload=mode == "offload")
    except ValueError as error:
        raise UserError(
            f"activation_checkpointing: {error}", hint="use --activation_checkpointing none"
        ) from error


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    del context, args, kwargs
    name = str(operator).split(".")[-2]
    is_costly = any(part in name for part in COSTLY)
    return CheckpointPolicy.MUST_SAVE if is_costly else CheckpointPolicy.PREFER_RECOMPUTE


def needed_bytes(mode: Mode, tokens: int, facts: ModelFacts, compute: int, tile: int = 0) -> int:
    """Memory of the activations that the device keeps for a packed row, in bytes; an estimate.

    Without recomputation about 12 widths and 4 MLP widths a layer, which came within 5 % of what
    was measured on the InternLM3-8B shape; with `selective` the results of the seven projections
    and of attention.

    Args:
        mode: what is kept.
        tokens: of the packed row.
        facts: the model's shape.
        compute: bytes of a number.
        tile: tokens that an MLP takes at once; 0 is all of them.
    """
    d, i, layers = facts.hidden_size, facts.intermediate_size, facts.num_layers
    in_mlp = 0 if tile else tokens  # tokens whose inner activations of an MLP are kept
    kept = {
        "none": 12 * d * tokens + 4 * i * in_mlp,
        "selective": 6 * d * tokens + 2 * i * in_mlp,
        "full": d * tokens,
        "offload": 0,
    }[mode]
    at_once = 4 * i * min(tile or tokens, tokens)  # the MLP that is being computed
    again = 0 if mode == "none" else 12 * d * tokens + at_once  # the layer, recomputed
    return (layers * kept + (at_once if mode == "none" and tile else again)) * compute
