"""What can be asked of quantization, and what it says of its result."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from pathlib import Path  # noqa: TC003
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, field_validator

from dialoop.core.schema import OneOf, Result
from dialoop.data.spec import Reading
from dialoop.models.spec import Dtype  # noqa: TC001
from dialoop.quantize.methods import Method  # noqa: TC001
from dialoop.quantize.readers import Reader  # noqa: TC001


def _share(value: Any) -> Any:
    """`5%` is 0.05; anything else is pydantic's business."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip().removesuffix("%")) / 100
        except ValueError:
            return value
    return value


class QuantizeJob(Reading, frozen=True):
    """Write a model with its weights in fewer bits, checked against the model."""

    model: str
    """The model: a folder, a name that can be pulled, or an adapter's folder (merged first)."""
    method: Annotated[Method, OneOf("dialoop.quantize.methods")]
    """How weights are rounded."""
    output: Path
    """Folder of the quantized checkpoint; it must not exist yet, or be empty."""
    dataset: list[str] = Field(default=[])
    """Dialogues like those that the model will see: what is rounded is chosen on most of them, what
    came of it is measured on the rest. Paths, catalog names, `hf::id`; `#500` takes 500 rows."""
    validation: float | list[str] = 0.1
    """Share of the dialogues to measure on (0 to 0.5), or data sets of their own."""
    seed: int = 42
    """Seed of the draw of dialogues and of the split."""
    num_tokens: int = Field(default=32768, ge=256)
    """Tokens to calibrate on; 16,000 to 250,000 is usual, more than the widest layer has inputs."""
    check_tokens: int = Field(default=8192, ge=64)
    """Held-out tokens to measure on; more give a surer perplexity."""
    max_length: int = Field(default=2048, ge=16)
    """Longest dialogue in tokens; longer ones are cut at their end."""
    keep: list[str] = Field(default=[])
    """Linear layers that stay as they are, by path or pattern (`model.layers.0.*`). Embedding and
    output head always stay."""
    precisions: dict[str, int] = Field(default={})
    """Other bits for some layers, by path or pattern: `{"*.down_proj": 8}`."""
    adapter: str | None = None
    """A LoRA adapter of the model."""
    adapter_mode: Literal["merge", "beside"] = "merge"
    """`merge` it before rounding, or put it `beside` the quantized base, in the folder `adapter`
    there."""
    max_ppl_increase: Annotated[float | None, BeforeValidator(_share)] = None
    """Largest rise of the held-out perplexity, as `5%` or 0.05; more is an error, and the files are
    marked as not verified."""
    device: str = "auto"
    """Where to compute: `auto`, `cpu`, `cuda`, `cuda:1`, `npu`. One layer at a time lies there."""
    dtype: Dtype = "auto"
    """Number type of the forward passes; `auto` takes bf16 where the device is fast at it."""
    resume: bool = False
    """Go on with a run that was stopped; its finished layers are kept."""

    @field_validator("method", mode="before")
    @classmethod
    def _refuse_gguf(cls, value: Any) -> Any:
        if isinstance(value, dict) and cast("dict[str, Any]", value).get("kind") == "gguf":
            raise ValueError(
                "no GGUF is written; convert_hf_to_gguf.py of llama.cpp makes one of the folder"
                " that `dialoop merge` writes"
            )
        return value

    aliases: ClassVar[Mapping[str, str]] = {
        "o": "output",
        "output_dir": "output",
        "group_size": "method.group_size",
    }


class QuantizeResult(Result, frozen=True):
    """What was written, and how it compares with the model that it was made from."""

    path: Path
    method: str
    num_layers: int
    """Linear layers that were rounded."""
    num_kept: int
    """Linear layers that stayed as they were, the output head not counted."""
    source_bytes: int
    """Weights of the model."""
    bytes: int
    """Weights of the result."""
    bits_a_weight: float
    """Storage of a rounded weight, scales included, on average."""
    perplexity: float | None
    """Of the result on the held-out answers; None without any."""
    source_perplexity: float | None
    ppl_increase: float | None
    """Rise of the perplexity as a share of the model's."""
    agreement: float
    """Share of the measured tokens, 0 to 1, where both name the same next token."""
    kl: float
    """Mean divergence of the next token's distribution from the model's, in nats."""
    num_measured: int
    """Tokens that both were compared on."""
    answer: str
    """What the reloaded result answers to a held-out question, greedily."""
    verified: bool
    """Whether the result reads back and is within the budget."""
    seconds: float
    peak_bytes: int
    """Peak memory: allocated on an accelerator, resident on a CPU."""
    readers: tuple[Reader, ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """A few lines."""
        smaller = self.source_bytes / self.bytes
        lines = [
            f"{self.path}: {self.num_layers} layers by {self.method},"
            f" {self.bits_a_weight:.2f} bits a weight; {self.bytes / 1e6:,.0f} MB,"
            f" {smaller:.1f} times smaller",
        ]
        if self.perplexity is not None:
            lines.append(
                f"held-out perplexity {self.source_perplexity:.3f} -> {self.perplexity:.3f}"
                f" ({self.ppl_increase:+.1%})"
            )
        lines += [
            f"the same next token at {self.agreement:.1%} of {self.num_measured:,} places;"
            f" divergence {self.kl:.4f} nats",
            f"reads: {', '.join(r.engine for r in self.readers if r.reads)}",
            *self.notes,
        ]
        return "\n".join(lines)
