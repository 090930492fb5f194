"""GPTQ: 4-bit weights, each column's error made up for by the next. Frantar et al. 2022."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.quantize import scheme
from dialoop.quantize.grouped import Grouped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.quantize.moments import Moments
    from dialoop.quantize.source import Layer, Part
    from dialoop.quantize.storage import Stored


class Gptq(Grouped, frozen=True):
    """Round columns one after another; those still open make up for the error (W4A16)."""

    kind: Literal["gptq"] = "gptq"
    symmetric: bool = True
    """Without zero points, which is what most kernels read fastest."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """Share of the Hessian's mean diagonal that is added to it; 0.01 to 0.1 is usual."""
    act_order: bool = True
    """Round the inputs that are driven most first, on scales fixed beforehand: the order of the
    stored weights stays, so every engine reads the result."""
    clip_search: bool = True
    """Search each group's scale for the least error; else it reaches the largest weight."""

    @override
    def quantize(
        self, layer: Layer, parts: list[Part], bits: Mapping[str, int]
    ) -> dict[str, Stored]:
        from dialoop.quantize.ordered import in_order
        from dialoop.quantize.solve import Solver
        from dialoop.quantize.storage import packed

        stored: dict[str, Stored] = {}
        solver = Solver(damping=self.damping, reorder=self.act_order, search=self.clip_search)

        def visit(name: str, moments: Moments) -> None:
            if name in bits:
                grid = self.grid(bits[name])
                found = solver.solve(layer.weight(name), moments, grid, layer.dtype)
                stored[name] = packed(found, bits[name])
                layer.set_dense(f"{name}.weight", stored[name].dense)

        in_order(layer, parts, visit)
        return stored

    @override
    def numbers(self, bits: int) -> scheme.Numbers:
        return scheme.Numbers(bits, "int", "group", symmetric=self.symmetric, group=self.group_size)
