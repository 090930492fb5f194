"""Balance: factors moved between a linear layer's inputs and what makes them, nothing else changed.

A norm, or the projection before, is divided by a factor for each channel, and the weights that read
the channel are multiplied by it. Known for decoders of Llama's build. Sources: Xiao et al. 2022,
arXiv:2211.10438, eq. 3 and 4 (SmoothQuant); Lin et al. 2023, arXiv:2306.00978, eq. 4 and 5 (AWQ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.quantize.source import Layer

FAMILIES = frozenset({"llama", "internlm3", "qwen2", "qwen3", "mistral", "smollm3"})
"""Model types whose layers are built like Llama's."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Linear layers and what makes their inputs."""

    maker: str
    """A norm or a linear layer whose outputs, channel by channel, are the inputs of `readers`."""
    readers: tuple[str, ...]
    repeats: bool = False
    """Whether each head of the maker's is read several times (grouped values)."""


NORMS = (
    Pair("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Pair("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
PROJECTIONS = (
    Pair("self_attn.v_proj", ("self_attn.o_proj",), repeats=True),
    Pair("mlp.up_proj", ("mlp.down_proj",)),
)


def apply(layer: Layer, pair: Pair, factors: Tensor) -> Tensor:
    """Divide the maker's channels by factors and multiply the readers' weights by them.

    The maker is rounded to the type in which it is stored, and the factors follow it, so that
    what both compute together is the same but for the readers' rounding.

    Args:
        layer: changed in place.
        pair: where.
        factors: (D,) above 0, one an input of the readers; equal for repeats of a value head.

    Returns:
        (D,) the factors that were applied.
    """
    rows = layer.tensors[f"{pair.maker}.weight"]
    own = _once(layer, factors, len(rows)) if pair.repeats else factors  # (C,)
    if rows.dim() == 1:  # a norm
        divided = (rows / own).to(layer.dtype).float()
        own = (rows / divided).where(divided != 0, own)
        layer.change(f"{pair.maker}.weight", divided)
    else:
        layer.change(f"{pair.maker}.weight", rows / own[:, None])
    bias = f"{pair.maker}.bias"
    if bias in layer.tensors:
        layer.change(bias, layer.tensors[bias] / own)
    applied = _repeated(layer, own, len(factors)) if pair.repeats else own
    for reader in pair.readers:
        layer.change(f"{reader}.weight", layer.weight(reader) * applied)
    return applied


def shared(layer: Layer, pair: Pair, values: Tensor) -> Tensor:
    """(D,) values of the readers' inputs, averaged over the repeats of each value head."""
    if not pair.repeats:
        return values
    num_channels = len(layer.tensors[f"{pair.maker}.weight"])
    heads = values.view(num_channels // layer.head_width, -1, layer.head_width)  # (K, repeats, w)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def _once(layer: Layer, factors: Tensor, num_channels: int) -> Tensor:
    heads = factors.view(num_channels // layer.head_width, -1, layer.head_width)
    return heads[:, 0].reshape(-1)


def _repeated(layer: Layer, factors: Tensor, width: int) -> Tensor:
    heads = factors.view(-1, 1, layer.head_width)
    return heads.expand(-1, width // len(factors), -1).reshape(-1)
