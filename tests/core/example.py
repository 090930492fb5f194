"""A spec with one field of every shape, for the tests of job files, flags and help."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator
from tests.core.kinds.small import Small

from dialoop.core.schema import OneOf, Option, Spec


class Optim(Spec, frozen=True):
    """How they move."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the moments."""


class Example(Spec, frozen=True):
    """An example."""

    model: str
    """A model."""
    dataset: list[str] = Field(min_length=1)
    """Paths or names."""
    tuner: Annotated[Option, OneOf("tests.core.kinds")] = Small()
    """Which parameters move."""
    objective: Annotated[Option, OneOf("tests.core.kinds")] = Small()
    """What is wanted."""
    optim: Optim = Optim()
    """How they move."""
    pack: bool = True
    """Join short rows."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic."""
    limit: int | None = Field(None, ge=1)
    """Most rows; all unless given."""
    validation: float | list[str] = 0.1
    """Share, or files."""
    checks: list[Annotated[Option, OneOf("tests.core.kinds")]] = Field(default_factory=list)
    """What is measured."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names."""

    aliases: ClassVar[Mapping[str, str]] = {
        "lora_rank": "tuner.rank",
        "train_type": "tuner",
        "lr": "optim.lr",
        "o": "model",
    }

    @model_validator(mode="after")
    def _limits(self) -> "Example":
        if self.limit == 13:
            raise ValueError("limit: 13 is unlucky")
        return self
