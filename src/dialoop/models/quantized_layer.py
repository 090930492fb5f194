"""Linear layers that keep the tensors of a quantized checkpoint, and compute with what they mean.

The dense weight exists only while a layer computes, forward and again backward: memory is that of
the stored tensors, on every device and without a kernel of the quantizer. The tensors are ordinary
frozen parameters, so that they are cut into shards like any other.

D is the layer's input width, E its output width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.models.checkpoint import Entry
    from dialoop.models.quantized import Format

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""Types of tensors as safetensors names them."""


class QuantizedLinear(nn.Module):
    """y = x W^T + b, where W is what the stored tensors mean.

    Args:
        name: the layer's path in the checkpoint.
        layer: a plain layer from D to E, whose place this one takes.
        stored: shapes and types of the tensors by name.
        meaning: the checkpoint's format.
    """

    def __init__(
        self, name: str, layer: nn.Linear, stored: Mapping[str, Entry], meaning: Format
    ) -> None:
        super().__init__()
        self.name, self.meaning = name, meaning
        self.in_features, self.out_features = layer.in_features, layer.out_features
        for part, entry in stored.items():
            empty = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            self.register_parameter(part, nn.Parameter(empty, requires_grad=False))
        self._parts = tuple(stored)
        self.bias = layer.bias

    def dense(self) -> Tensor:
        """W: (E, D) float32."""
        parts = {name: self.get_parameter(name).detach() for name in self._parts}
        return self.meaning.dense(self.name, parts, (self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E), in the dtype of x."""
        product: Any = _Product.apply
        y = product(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.dense().to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense().to(grads[0].dtype), None
