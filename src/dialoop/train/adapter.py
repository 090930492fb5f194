"""What the tuners with low-rank adapters share. Source: Hu et al. 2021, arXiv:2106.09685."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from typing_extensions import override

from dialoop.train.tuners import Tuner

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.models.lora import LoraConfig
    from dialoop.models.spec import ModelFacts


class Adapter(Tuner, frozen=True):
    """What adapters have in common, however the base is stored."""

    rank: PositiveInt = 16
    """Rank of the update; usually 8 to 64."""
    alpha: PositiveFloat | None = None
    """The update is scaled by alpha / rank; twice the rank when left out."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's input dropped while training."""
    target_modules: list[str] = Field(default=["all-linear"], min_length=1)
    """Layers that get an adapter: `all-linear`, names such as `q_proj`, or `*` patterns."""
    rank_pattern: dict[str, int] = Field(default={})
    """Other ranks by layer name or pattern."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable."""

    default_lr: ClassVar[float] = 2e-4

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Freeze the model and put fresh adapters on it."""
        from dialoop.models import lora

        lora.attach(model, self._config_for(model), seed=seed)

    @override
    def save(self, model: PreTrainedModel, folder: Path, base: str, dtype: str) -> None:
        """Write the adapter in PEFT's format, float32."""
        from dialoop.models import lora

        del dtype
        lora.save(model, self._config_for(model), folder, base=base)

    def _config_for(self, model: PreTrainedModel) -> LoraConfig:
        """With the layers that a model of scores trains whole."""
        from dialoop.models import heads

        return replace(
            self.config(),
            modules_to_save=heads.score_modules(model),
            task_type=heads.TASK_TYPES[heads.kind_of(model)],
        )

    def config(self) -> LoraConfig:
        """The same as the model package knows it."""
        from dialoop.models.lora import LoraConfig

        return LoraConfig(
            rank=self.rank,
            alpha=self.alpha or 2.0 * self.rank,
            dropout=self.dropout,
            targets=tuple(self.target_modules),
            rank_pattern=dict(self.rank_pattern),
            use_rslora=self.use_rslora,
        )

    @override
    def num_trained(self, facts: ModelFacts) -> int:
        """Rank times the widths of every linear layer, as `all-linear` has it."""
        d, i = facts.hidden_size, facts.intermediate_size
        q, kv = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
        widths = (d + q) + 2 * (d + kv) + (q + d) + 2 * (d + i) + (i + d)
        return self.rank * widths * facts.num_layers

    @override
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """The frozen base in the compute type, and float32 adapters."""
        return facts.num_parameters * compute_bytes + 4 * self.num_trained(facts)
