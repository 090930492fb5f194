"""AWQ: 4-bit weights, channels that matter scaled up before rounding. Lin et al. 2023."""

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


class Awq(Grouped, frozen=True):
    """Scale up the channels that are driven most, then round to nearest (W4A16, zero points).

    The factors are searched as in the paper, and what a candidate loses is computed from the
    products of the inputs, without a forward pass.
    """

    kind: Literal["awq"] = "awq"
    symmetric: bool = False
    """Without zero points: faster in some kernels, less exact."""
    num_candidates: int = Field(default=20, ge=2, le=100)
    """Exponents from 0 to 1 that are tried for the factors; 20 as in the paper."""
    clip_search: bool = True
    """Search each group's range for the least error; else it reaches the largest weight."""
    rounding: Literal["gptq", "nearest"] = "gptq"
    """`gptq` makes up for each column's error with the next ones; `nearest` is the paper's."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """Share of the Hessian's mean diagonal that is added to it, for `gptq`."""

    @override
    def quantize(
        self, layer: Layer, parts: list[Part], bits: Mapping[str, int]
    ) -> dict[str, Stored]:
        from dialoop.quantize import balance
        from dialoop.quantize.grid import nearest
        from dialoop.quantize.ordered import in_order, survey
        from dialoop.quantize.scaling import search
        from dialoop.quantize.solve import Solver
        from dialoop.quantize.storage import packed

        seen = survey(layer, parts, products=True)
        for pair in (*balance.NORMS, *balance.PROJECTIONS):
            readers = [name for name in pair.readers if name in bits]
            if len(readers) == len(pair.readers):
                grid = self.grid(bits[readers[0]])
                factors = search(layer, pair, seen[readers[0]], grid, self.num_candidates)
                balance.apply(layer, pair, factors)
        del seen
        stored: dict[str, Stored] = {}

        solver = Solver(damping=self.damping, reorder=True, search=self.clip_search)

        def visit(name: str, moments: Moments) -> None:
            if name not in bits:
                return
            weight, grid = layer.weight(name), self.grid(bits[name])
            if self.rounding == "gptq":
                found = solver.solve(weight, moments, grid, layer.dtype)
            else:
                found = nearest(
                    weight, moments.importance, grid, layer.dtype, search=self.clip_search
                )
            stored[name] = packed(found, bits[name])
            layer.set_dense(f"{name}.weight", stored[name].dense)

        in_order(layer, parts, visit, products=self.rounding == "gptq")
        return stored

    @override
    def numbers(self, bits: int) -> scheme.Numbers:
        return scheme.Numbers(bits, "int", "group", symmetric=self.symmetric, group=self.group_size)
