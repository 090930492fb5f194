"""FP8: 8-bit floats, a scale an output for weights and one a token for activations (W8A8).

Rounding by `gptq` is that of GPTQ (Frantar et al. 2022, arXiv:2210.17323) on the grid of floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.quantize import readers, scheme
from dialoop.quantize.weightwise import Weightwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from dialoop.quantize.methods import Shapes
    from dialoop.quantize.moments import Moments
    from dialoop.quantize.source import Layer, Part
    from dialoop.quantize.storage import Stored


class Fp8(Weightwise, frozen=True):
    """8-bit floats (e4m3); activations are scaled as they come, token by token."""

    kind: Literal["fp8"] = "fp8"
    rounding: Literal["nearest", "gptq"] = "nearest"
    """`gptq` looks at dialogues and makes up for each column's error with the next ones: about half
    of what rounding the weights costs; `nearest` takes seconds."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """Share of the Hessian's mean diagonal that is added to it, for `gptq`."""
    default_bits: ClassVar[int] = 8

    @property
    @override
    def needs_data(self) -> bool:
        return self.rounding == "gptq"

    @override
    def quantize(
        self, layer: Layer, parts: list[Part], bits: Mapping[str, int]
    ) -> dict[str, Stored]:
        if self.rounding == "nearest":
            return super().quantize(layer, parts, bits)
        from dialoop.quantize.grid import Grid
        from dialoop.quantize.ordered import in_order
        from dialoop.quantize.solve import Solver
        from dialoop.quantize.storage import bytes_of

        stored: dict[str, Stored] = {}
        solver = Solver(damping=self.damping, reorder=True, search=False)

        def visit(name: str, moments: Moments) -> None:
            if name in bits:
                weight = layer.weight(name)
                grid = Grid(8, symmetric=True, group=weight.shape[1], is_float=True)
                stored[name] = bytes_of(solver.solve(weight, moments, grid, layer.dtype))
                layer.set_dense(f"{name}.weight", stored[name].dense)

        in_order(layer, parts, visit)
        return stored

    @override
    def refuse(self, shapes: Shapes) -> None:
        del shapes

    @override
    def store(self, weight: Tensor, dtype: torch.dtype, bits: int) -> Stored:
        del bits
        from dialoop.quantize.storage import fp8_channels

        return fp8_channels(weight, dtype)

    @override
    def bits_a_weight(self, bits: int) -> float:
        return float(bits)

    @override
    def readers(self, bits: tuple[int, ...]) -> tuple[readers.Reader, ...]:
        del bits
        return readers.fp8()

    @override
    def config(self, bits: Mapping[str, int], kept: list[str]) -> dict[str, Any]:
        part = scheme.Part(
            tuple(bits),
            scheme.Numbers(8, "float", "channel"),
            scheme.Numbers(8, "float", "token", is_dynamic=True),
        )
        return scheme.compressed_tensors([part], "float-quantized", kept)
