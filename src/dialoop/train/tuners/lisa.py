"""LISA: a few random layers move at a time. Source: Pan et al. 2024, arXiv:2403.17919, alg. 1.

Embedding, head and final norm always move. Layers are drawn from the seed and the step alone, so
that a resumed run draws the same ones. The optimiser forgets a layer that comes to rest, as the
algorithm runs AdamW anew on each choice: only the moving layers have gradients and states.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.train.whole_model import WholeModel

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch.optim import Optimizer as TorchOptimizer
    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts
    from dialoop.train.optim import Optim
    from dialoop.train.optimizers import Optimizer


class Lisa(WholeModel, frozen=True):
    """Train embedding, head and a few layers, drawn anew every few steps."""

    kind: Literal["lisa"] = "lisa"
    layers: PositiveInt = 2
    """Decoder layers that move at a time."""
    interval: PositiveInt = 20
    """Steps between draws."""

    default_lr: ClassVar[float] = 1e-5
    needs_whole_matrices: ClassVar[bool] = True

    @override
    def refuse(self, *, optimizer: Optimizer, optim: Optim, accumulate: int, dtype: str) -> None:
        del optim, accumulate, dtype
        if optimizer.kind == "muon":
            raise ValueError(
                "optimizer: lisa lets the optimiser forget layers, which muon's two parts do not"
                " share; use adamw, adamw_8bit or adafactor"
            )

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Widen to float32 and let everything move; which layers do is said step by step."""
        del seed
        if self.layers > (has := model.config.num_hidden_layers):
            raise UserError(
                f"tuner.layers is {self.layers} and the model has {has}",
                hint=f"use {has} or fewer; all of them are --tuner full",
            )
        model.float().requires_grad_(requires_grad=True)

    @override
    @contextmanager
    def step(
        self, model: PreTrainedModel, optimizer: TorchOptimizer, number: int, seed: int
    ) -> Generator[None]:
        chosen = self.drawn(model.config.num_hidden_layers, number, seed)
        blocks: Any = model.get_decoder().layers
        resting = [
            p for n, block in enumerate(blocks) if n not in chosen for p in block.parameters()
        ]
        for p in resting:
            p.requires_grad_(requires_grad=False)
            optimizer.state.pop(p, None)
        try:
            yield
        finally:
            for p in resting:
                p.requires_grad_(requires_grad=True)

    def drawn(self, num_layers: int, number: int, seed: int) -> frozenset[int]:
        """The layers that move at a step."""
        import numpy as np

        random = np.random.default_rng([seed, number // self.interval])
        return frozenset(random.choice(num_layers, self.layers, replace=False).tolist())

    @override
    def num_trained(self, facts: ModelFacts) -> int:
        """Those that move at one time."""
        return facts.num_parameters - self._num_resting(facts)

    def _num_resting(self, facts: ModelFacts) -> int:
        in_layers = sum(e * d for e, d in facts.linear_shapes().values())
        return in_layers * max(0, facts.num_layers - self.layers) // facts.num_layers
