"""What can be asked of a verification: the forms of one model, dialogues, tolerances."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from pathlib import Path  # noqa: TC003
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from dialoop.core.schema import Spec


class VerifyJob(Spec, frozen=True):
    """Prove that the forms of one model agree: adapter, merged, quantized, served."""

    models: list[str] = Field(min_length=1)
    """Checkpoints: adapter, merged or quantized folders; the first is what the others are held
    against."""
    served: dict[str, str] = Field(default={})
    """Endpoints that serve the first model: `name=http://127.0.0.1:8000/v1`, the name as it is
    there. Where a quantized folder is served, it is the first model, too."""
    key_variable: str | None = None
    """Environment variable that holds the endpoints' API key."""
    dialogues: list[Path] = Field(default=[])
    """JSON Lines files with `messages` and perhaps `tools`, each ending before the answer; added to
    those of our own (system, several turns, tools, Chinese, spaces)."""
    max_new_tokens: PositiveInt = 24
    """Tokens of each answer that are compared."""
    max_nats: PositiveFloat = 0.25
    """Largest difference of a first token's log-probability; 0.25 is bf16's rounding."""
    max_nats_quantized: PositiveFloat = 0.5
    """For a folder whose weights are quantized: largest mean difference over the answers' tokens.
    A model of 135M parameters differs by 0.3 in 4 bits and by 0.1 in 8; larger ones by less."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `npu`."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number type of the weights; `auto` takes bf16 where the device is fast at it."""
    output: Path | None = None
    """Folder for verify.json and verify.md; nothing is written without it."""

    aliases: ClassVar[Mapping[str, str]] = {"o": "output", "output_dir": "output"}
