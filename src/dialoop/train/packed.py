"""4-bit layers of plain tensors: they can be cut into shards, and compute the same at any time.

bitsandbytes keeps a weight's scales as an attribute of its own kind of parameter, which a cut would
lose, and on some CPUs its layer packs the weight anew at the first question without gradient, for a
kernel that has none: what is trained afterwards gets wrong gradients (0.50). Here the packed bytes
are an ordinary frozen parameter, gathered for each pass like any other, and the scales stay whole
on every rank: an eighth of a bit a weight beside four. Idea: FSDP and QLoRA together, Answer.AI
2024, "You can now train a 70b language model at home".

D is the layer's input width, E its output width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from bitsandbytes.nn.modules import Linear4bit
    from transformers import PreTrainedModel


class Packed4bit(nn.Module):
    """What a layer of bitsandbytes computes.

    Args:
        layer: a quantised layer from D to E.
    """

    def __init__(self, layer: Linear4bit) -> None:
        super().__init__()
        weight: Any = layer.weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.compute_dtype = layer.compute_dtype
        self.weight = nn.Parameter(weight.data, requires_grad=False)  # (D * E / 2, 1) uint8
        self.bias = layer.bias
        self._scales = weight.quant_state

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E), in the dtype of x."""
        import bitsandbytes

        wide = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        library: Any = bitsandbytes
        return library.matmul_4bit(wide, self.weight, self._scales, bias=bias).to(x.dtype)


def repack(model: PreTrainedModel) -> None:
    """Put such layers in the place of bitsandbytes' own, which have not been used yet."""
    quantized = model.config.to_dict().get("quantization_config") or {}
    if quantized.get("quant_method") != "bitsandbytes":
        return
    from bitsandbytes.nn.modules import Linear4bit

    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            model.set_submodule(name, Packed4bit(module))
