"""Optim: how fast parameters move, whatever moves them."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from dialoop.core.schema import Spec


class Optim(Spec, frozen=True):
    """Rate, schedule, decay and clipping, whatever the optimiser."""

    lr: PositiveFloat | None = None
    """Peak learning rate; when left out 2e-4 for adapters, 1e-5 for full tuning."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the rate falls after the warm-up, to `min_lr_ratio`; wsd is constant, then falls over the
    last `decay` of the steps."""
    decay: float = Field(default=0.1, gt=0, le=1)
    """Share of the steps over which wsd lets the rate fall."""
    warmup: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which the rate rises from zero."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Last rate as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices; usually 0 for adapters, 0.1 for full tuning."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean squared gradient."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Longest gradient; longer ones are scaled down. 0 never scales."""

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> Self:
        if self.decay != Optim.model_fields["decay"].default and self.schedule != "wsd":
            raise ValueError(f"decay: a {self.schedule} schedule has no such part; use wsd")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError("decay: warmup and decay together are longer than the run")
        return self
