"""LoRA+: a higher rate for B than for A. Source: Hayou et al. 2024, arXiv:2402.12354."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat
from typing_extensions import override

from dialoop.train.adapter import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dialoop.train.optim import Optim


class LoraPlus(Adapter, frozen=True):
    """Train low-rank updates, B faster than A."""

    kind: Literal["lora_plus"] = "lora_plus"
    lr_ratio: PositiveFloat = 16.0
    """Rate of B over that of A, which has the job's; usually 2 to 32."""

    @override
    def parameter_groups(self, model: PreTrainedModel, optim: Optim) -> list[dict[str, Any]]:
        from dialoop.models.lora import layers
        from dialoop.train.groups import group, groups_of

        fast = {id(layer.lora_B) for layer in layers(model).values()}
        groups: list[dict[str, Any]] = []
        for one in groups_of(model, optim.weight_decay):
            decay, hidden = one["weight_decay"], one["is_hidden"]
            slow = [p for p in one["params"] if id(p) not in fast]
            rest = [p for p in one["params"] if id(p) in fast]
            groups.append(group(slow, decay, is_hidden=hidden))
            groups.append(group(rest, decay, is_hidden=hidden, lr_scale=self.lr_ratio))
        return [g for g in groups if g["params"]]
