"""A part of the parameters moves: the last layers, or those that patterns name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.train.whole_model import WholeModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts
    from dialoop.train.optim import Optim
    from dialoop.train.optimizers import Optimizer


class Freeze(WholeModel, frozen=True):
    """Train the last layers, or the parameters that patterns name; the rest is frozen."""

    kind: Literal["freeze"] = "freeze"
    last_layers: int = Field(default=2, ge=0)
    """Decoder layers that are trained, counted from the end."""
    parameters: list[str] = Field(default=[])
    """Other parameters that are trained: `lm_head`, `*.norm.weight`, `layers.0.*`."""

    default_lr: ClassVar[float] = 1e-5

    @override
    def refuse(self, *, optimizer: Optimizer, optim: Optim, accumulate: int, dtype: str) -> None:
        del optimizer, optim, accumulate, dtype
        if not self.last_layers and not self.parameters:
            raise ValueError("tuner.last_layers: 0 and no parameters leave nothing to train")

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Freeze all but what was chosen, which is widened to float32."""
        del seed
        names = [name for name, _ in model.named_parameters()]
        chosen = self._chosen(names, model.config.num_hidden_layers)
        model.requires_grad_(requires_grad=False)
        for name, p in model.named_parameters():
            if name in chosen:
                p.data = p.data.float()
                p.requires_grad_()

    @override
    def num_trained(self, facts: ModelFacts) -> int:
        """The parameters of linear layers and tables that were chosen."""
        widths = {f"{path}.weight": e * d for path, (e, d) in facts.linear_shapes().items()}
        table = facts.vocab_size * facts.hidden_size
        widths |= {"model.embed_tokens.weight": table}
        widths |= {} if facts.tied_embeddings else {"lm_head.weight": table}
        chosen = self._hits(list(widths), facts.num_layers)
        return sum(widths[name] for name in chosen)

    @override
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """Frozen weights in the compute type, trained ones in float32 with autocast's copies."""
        copies = compute_bytes if compute_bytes < 4 else 0
        trained = self.num_trained(facts)
        return (facts.num_parameters - trained) * compute_bytes + trained * (4 + copies)

    def _chosen(self, names: list[str], num_layers: int) -> set[str]:
        """The names that are trained; each pattern must name something."""
        for pattern in self.parameters:
            if not _hits(pattern, names):
                raise UserError(
                    f"no parameter matches `{pattern}` of tuner.parameters",
                    hint=f"names look like {', '.join(names[:2])}",
                )
        return self._hits(names, num_layers)

    def _hits(self, names: list[str], num_layers: int) -> set[str]:
        first = num_layers - self.last_layers
        layers = {name for name in names if layer_number(name, -1) >= first}
        return layers.union(*(_hits(pattern, names) for pattern in self.parameters))


def layer_number(name: str, other: int) -> int:
    """The decoder layer that a parameter belongs to; `other` for one outside all layers."""
    found = re.search(r"(?:^|\.)layers?\.(\d+)\.", name)
    return int(found.group(1)) if found else other


def _hits(pattern: str, names: list[str]) -> list[str]:
    from dialoop.models.lora import matches

    return [
        name
        for name in names
        if matches(pattern, name)
        or matches(pattern, name.rpartition(".")[0])
        or matches(f"*.{pattern}", name)
    ]
