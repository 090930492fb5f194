"""What the tuners with low-rank adapters share. Source: Hu et al. 2021, arXiv:2106.09685."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.train.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dialoop.models.adapted import LoraLinear
    from dialoop.models.lora import LoraConfig
    from dialoop.models.spec import ModelFacts
    from dialoop.train.optim import Optim
    from dialoop.train.optimizers import Optimizer

SHAPE = ("rank", "alpha", "target_modules", "rank_pattern", "alpha_pattern", "modules_to_save")
SHAPE += ("new_tokens", "new_words", "use_rslora")
"""Fields that an adapter which is trained on has settled."""


class Adapter(Vocabulary, frozen=True):
    """What adapters have in common, however the base is stored."""

    rank: PositiveInt = 16
    """Rank of the update; usually 8 to 64."""
    alpha: PositiveFloat | None = None
    """The update is scaled by alpha / rank; twice the rank when left out."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's input dropped while training."""
    target_modules: list[str] = Field(default=["all-linear"], min_length=1)
    """Layers that get an adapter: `all-linear`, names such as `q_proj`, or `*` patterns."""
    rank_pattern: dict[str, PositiveInt] = Field(default={})
    """Other ranks by layer name or pattern."""
    alpha_pattern: dict[str, PositiveFloat] = Field(default={})
    """Other alphas by layer name or pattern."""
    modules_to_save: list[str] = Field(default=[])
    """Modules trained whole, such as `embed_tokens` or `lm_head`; saved with the adapter."""
    adapter: Path | None = None
    """Go on from this adapter's weights; its rank, scale and layers are kept."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable."""

    use_dora: ClassVar[bool] = False
    """Whether the length of each weight row is learned apart."""
    saves_model: ClassVar[bool] = False
    autocasts: ClassVar[bool] = False
    takes_quantized: ClassVar[bool] = True
    default_lr: ClassVar[float] = 2e-4

    @override
    def refuse(self, *, optimizer: Optimizer, optim: Optim, accumulate: int, dtype: str) -> None:
        del optimizer, optim, accumulate, dtype
        fields = type(self).model_fields
        whole = {name.rpartition(".")[2] for name in self.modules_to_save} & {
            "embed_tokens",
            "lm_head",
        }
        if (self.new_tokens or self.new_words) and whole:
            name = "new_tokens" if self.new_tokens else "new_words"
            raise ValueError(
                f"tuner.{name}: {', '.join(sorted(whole))} is trained whole by modules_to_save,"
                " and so cannot have rows trained alone; use one of the two"
            )
        if self.adapter is None:
            return
        for name in SHAPE:
            if getattr(self, name) != fields[name].get_default(call_default_factory=True):
                raise ValueError(
                    f"tuner.{name}: `{self.adapter}` has settled this; leave it out, or start anew"
                    " without tuner.adapter"
                )

    @property
    @override
    def start(self) -> str:
        from dialoop.core.files import sha256

        known = self.adapter and sha256(self.adapter / "adapter_model.safetensors")
        return f"{super().start} {known} {self.new_tokens} {self.new_words}"

    @override
    def text_folder(self, folder: Path, output: Path) -> Path:
        from dialoop.models.load import text_folder

        if self.adapter is not None:
            return text_folder(self.adapter)
        return super().text_folder(folder, output)

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Freeze the model and put adapters on it: fresh ones, or those of `adapter`."""
        from dialoop.models import lora
        from dialoop.models.load import attach_adapter

        if self.adapter is None:
            config = replace(self._config_for(model), token_ids=self.add_rows(model, seed))
            lora.attach(model, config, seed=seed, kind=self.layer())
            return
        self._refuse_other_kind(self.adapter)
        attach_adapter(model, self.adapter)
        for layer in lora.layers(model).values():
            layer.dropout = self.dropout

    @override
    def save(self, model: PreTrainedModel, folder: Path, base: str, dtype: str) -> None:
        """Write the adapter in PEFT's format, float32."""
        from dialoop.models import lora

        del dtype
        lora.save(model, self._config_for(model), folder, base=base)

    def _config_for(self, model: PreTrainedModel) -> LoraConfig:
        """With the layers that a model of scores trains whole."""
        from dialoop.models import heads

        config = self.config()
        return replace(
            config,
            copies=tuple(dict.fromkeys((*config.copies, *heads.score_modules(model)))),
            task_type=heads.TASK_TYPES[heads.kind_of(model)],
        )

    def layer(self) -> type[LoraLinear]:
        """The class of an adapted layer."""
        from dialoop.models.adapted import DoraLinear, LoraLinear

        return DoraLinear if self.use_dora else LoraLinear

    def config(self) -> LoraConfig:
        """The same as the model package knows it."""
        from dialoop.models.lora import LoraConfig, read_config

        if self.adapter is not None:
            return replace(read_config(self.adapter)[0], dropout=self.dropout)
        return LoraConfig(
            rank=self.rank,
            alpha=self.alpha or 2.0 * self.rank,
            dropout=self.dropout,
            targets=tuple(self.target_modules),
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            copies=tuple(self.modules_to_save),
        )

    @override
    def num_trained(self, facts: ModelFacts) -> int:
        """Rank times the widths of every layer that gets an adapter, and whole copies."""
        from dialoop.models.lora import ALL_LINEAR, matches

        config = self.config()
        rows = (lambda narrow: narrow) if self.use_dora else (lambda _: 0)
        count = 0
        for path, (narrow, wide) in facts.linear_shapes().items():
            if any(t == ALL_LINEAR or matches(t, path) for t in config.targets):
                count += config.shape(path)[0] * (narrow + wide) + rows(narrow)
        tables = {"model.embed_tokens", "lm_head"}
        copied = [t for t in tables if any(matches(c, t) for c in config.copies)]
        num_tables = min(len(copied), 1) if facts.tied_embeddings else len(copied)
        count += self.num_new(facts)
        return count + num_tables * facts.vocab_size * facts.hidden_size

    @override
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """The frozen base in the compute type, and float32 adapters."""
        return facts.num_parameters * compute_bytes + 4 * self.num_trained(facts)

    def _refuse_other_kind(self, folder: Path) -> None:
        from dialoop.models.lora import read_config

        if read_config(folder)[0].use_dora != self.use_dora:
            words = ("a DoRA", "dora") if not self.use_dora else ("no DoRA", "lora")
            raise UserError(
                f"tuner.adapter: `{folder}` is {words[0]} adapter, and the tuner is {self.kind}",
                hint=f"use --tuner {words[1]}",
            )
