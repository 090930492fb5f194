"""What GaLore and APOLLO share: every parameter moves, hidden matrices by a small projection."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.train.whole_model import WholeModel

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer
    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts
    from dialoop.train.optim import Optim
    from dialoop.train.optimizers import Optimizer
    from dialoop.train.subspace import Subspace


class Projected(WholeModel, frozen=True):
    """Full training whose optimiser sees a projection of each matrix's gradient."""

    rank: PositiveInt = 128
    """Rows or columns that are left of a gradient; the shorter side is projected."""
    update_proj_gap: PositiveInt = 200
    """Steps between new projections."""
    target_modules: list[str] = Field(default=["all-linear"], min_length=1)
    """Layers whose gradient is projected: `all-linear`, names such as `q_proj`, or patterns."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Type of the projected layers' weights; bf16 halves them and rounds updates at random."""
    per_layer: bool = False
    """Move each parameter as soon as its gradient is there, so that gradients are never all in
    memory; needs `accumulate` 1 and no clipping."""

    default_lr: ClassVar[float] = 1e-4
    needs_whole_matrices: ClassVar[bool] = True
    projects: ClassVar[bool] = False
    """Whether the projection itself is kept in memory."""

    @abstractmethod
    def subspace(self, seed: int) -> Subspace:
        """How gradients are projected."""

    @override
    def refuse(self, *, optimizer: Optimizer, optim: Optim, accumulate: int, dtype: str) -> None:
        if not optimizer.is_elementwise:
            raise ValueError(
                f"optimizer: {self.kind} moves matrices in a subspace, where {optimizer.kind}"
                " has no meaning; use adamw or adamw_8bit"
            )
        if self.weights == "bf16" and dtype != "bf16":
            raise ValueError("tuner.weights: bf16 weights compute only with dtype bf16; set it")
        if self.per_layer and accumulate != 1:
            raise ValueError(
                "tuner.per_layer: a gradient that has moved its layer cannot be added to; use"
                " accumulate 1 and a larger batch_size"
            )
        if self.per_layer and optim.max_grad_norm:
            raise ValueError(
                "tuner.per_layer: the norm of all gradients is not known before layers move; use"
                " optim.max_grad_norm 0"
            )

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Let everything move; projected layers in the type of `weights`, the rest in float32."""
        import torch

        from dialoop.models.lora import target_names

        del seed
        model.float().requires_grad_(requires_grad=True)
        if self.weights == "bf16":
            for name in target_names(model, tuple(self.target_modules)):
                model.get_submodule(name).to(torch.bfloat16)

    @override
    def optimizer(
        self, model: PreTrainedModel, optim: Optim, optimizer: Optimizer, seed: int
    ) -> TorchOptimizer:
        from dialoop.models.lora import target_names
        from dialoop.train.subspace import InSubspace

        layers = target_names(model, tuple(self.target_modules))
        chosen = {id(model.get_submodule(name).weight) for name in layers}
        groups: list[dict[str, Any]] = []
        for one in self.parameter_groups(model, optim):
            for is_projected in (True, False):
                members = [p for p in one["params"] if (id(p) in chosen) == is_projected]
                if members:
                    groups.append(one | {"params": members, "is_projected": is_projected})
        made = InSubspace(groups, self.subspace(seed), self.rank, optimizer, optim)
        if self.per_layer:
            made.step_in_backward()
        return made

    @override
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """Weights, and the copies that autocast keeps of those that are wider."""
        hidden = sum(narrow * wide for narrow, wide in self._shapes(facts))
        rest = facts.num_parameters - hidden
        copies = compute_bytes if compute_bytes < 4 else 0
        return rest * (4 + copies) + hidden * (2 if self.weights == "bf16" else 4 + copies)

    @override
    def state_bytes(self, facts: ModelFacts, optimizer: Optimizer) -> int:
        """Gradients, states and proxies of what is projected, states of the rest, projections."""
        shapes = self._shapes(facts)
        hidden = sum(narrow * wide for narrow, wide in shapes)
        rest = facts.num_parameters - hidden
        gradients = 4 * rest + (2 if self.weights == "bf16" else 4) * hidden
        if self.per_layer:
            gradients = 4 * facts.vocab_size * facts.hidden_size
        low = sum(min(self.rank, *shape) * max(shape) for shape in shapes)
        projections = 4 * sum(min(self.rank, *shape) * min(shape) for shape in shapes)
        states = low * (4 + optimizer.state_bytes) + rest * optimizer.state_bytes
        return int(gradients + states + (projections if self.projects else 0))

    def _shapes(self, facts: ModelFacts) -> list[tuple[int, int]]:
        from dialoop.models.lora import ALL_LINEAR, matches

        return [
            shape
            for path, shape in facts.linear_shapes().items()
            if any(t == ALL_LINEAR or matches(t, path) for t in self.target_modules)
        ]
