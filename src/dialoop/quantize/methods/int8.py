"""INT8: 8-bit weights and activations, outliers smoothed away first. Xiao et al. 2022."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.quantize import readers, scheme
from dialoop.quantize.methods import Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.quantize.methods import Shapes
    from dialoop.quantize.moments import Moments
    from dialoop.quantize.source import Layer, Part
    from dialoop.quantize.storage import Stored


class Int8(Method, frozen=True):
    """8-bit weights, a scale an output; activations rounded as they come, token by token (W8A8)."""

    kind: Literal["int8"] = "int8"
    smoothing: float = Field(default=0.65, ge=0, le=1)
    """Share of the activations' range that moves into the weights (SmoothQuant), before every
    linear layer; 0 smooths nothing."""
    rounding: Literal["gptq", "nearest"] = "gptq"
    """`gptq` makes up for each column's error with the next ones; `nearest` is faster."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """Share of the Hessian's mean diagonal that is added to it, for `gptq`."""
    default_bits: ClassVar[int] = 8

    @override
    def refuse(self, shapes: Shapes) -> None:
        del shapes

    @override
    def quantize(
        self, layer: Layer, parts: list[Part], bits: Mapping[str, int]
    ) -> dict[str, Stored]:
        from dialoop.quantize import balance
        from dialoop.quantize.grid import Grid, nearest
        from dialoop.quantize.ordered import in_order, survey
        from dialoop.quantize.scaling import smooth
        from dialoop.quantize.solve import Solver
        from dialoop.quantize.storage import bytes_of

        if self.smoothing:
            seen = survey(layer, parts, products=False)
            for pair in (*balance.NORMS, *balance.PROJECTIONS):
                if all(name in bits for name in pair.readers):
                    factors = smooth(layer, pair, seen[pair.readers[0]], self.smoothing)
                    balance.apply(layer, pair, balance.shared(layer, pair, factors))
        stored: dict[str, Stored] = {}
        solver = Solver(damping=self.damping, reorder=True, search=False)

        def visit(name: str, moments: Moments) -> None:
            if name not in bits:
                return
            weight = layer.weight(name)
            grid = Grid(8, symmetric=True, group=weight.shape[1])
            if self.rounding == "gptq":
                found = solver.solve(weight, moments, grid, layer.dtype)
            else:
                found = nearest(weight, moments.importance, grid, layer.dtype, search=False)
            stored[name] = bytes_of(found)
            layer.set_dense(f"{name}.weight", stored[name].dense)

        in_order(layer, parts, visit, products=self.rounding == "gptq")
        return stored

    @override
    def bits_a_weight(self, bits: int) -> float:
        return float(bits)

    @override
    def readers(self, bits: tuple[int, ...]) -> tuple[readers.Reader, ...]:
        del bits
        return readers.int8()

    @override
    def config(self, bits: Mapping[str, int], kept: list[str]) -> dict[str, Any]:
        part = scheme.Part(
            tuple(bits),
            scheme.Numbers(8, "int", "channel"),
            scheme.Numbers(8, "int", "token", is_dynamic=True),
        )
        return scheme.compressed_tensors([part], "int-quantized", kept)
