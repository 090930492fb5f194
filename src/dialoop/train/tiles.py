"""MLPs computed a tile of tokens at a time, so that their width does not bound a row's length.

A tile's inner activations exist only while it is computed, forward and again backward.
Source: ALST, Bekman et al. 2025, arXiv:2506.13996, section 3.1.2.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel


def tile_mlps(model: PreTrainedModel, tile: int, *, compiled: bool = False) -> None:
    """Let the MLP of every decoder layer take `tile` tokens at once, in place.

    Args:
        model: a decoder.
        tile: tokens.
        compiled: compile what is done with a tile; the compiler does not look into the rest.

    Raises:
        UserError: the model's layers have no MLP that takes tokens one by one.
    """
    decoder: Any = model.get_decoder()
    for layer in getattr(decoder, "layers", [None]):
        mlp = getattr(layer, "mlp", None)
        if mlp is None or hasattr(mlp, "experts"):
            raise UserError(
                f"mlp_tile: the layers of {model.config.model_type} have no plain MLP",
                hint="leave --mlp_tile out",
            )
        if compiled:
            one = torch.compile(mlp.forward, dynamic=True)
            mlp.forward = torch.compiler.disable(partial(_in_tiles, one, tile))
        else:
            mlp.forward = partial(_in_tiles, mlp.forward, tile)


def _in_tiles(whole: Callable[[Tensor], Tensor], tile: int, hidden: Tensor) -> Tensor:
    """What `whole` makes of (1, T, D), a part of the tokens at a time."""
    if hidden.shape[1] <= tile:
        return whole(hidden)
    parts = hidden.split(tile, dim=1)
    return torch.cat([checkpoint(whole, part, use_reentrant=False) for part in parts], dim=1)
