"""What can be asked of an evaluation: checkpoints, material, tasks, generation."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from pathlib import Path  # noqa: TC003
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dialoop.core.schema import OneOf, Spec
from dialoop.data.spec import Reading
from dialoop.evaluate.tasks import Task  # noqa: TC001
from dialoop.train.endpoint import Endpoint


class Generation(Spec, frozen=True):
    """How answers are generated."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens; 64 to 512 is usual."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """Spread of the sampling; 0 always takes the likeliest token, so that answers repeat."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample among the likeliest tokens that hold this share of the probability."""
    seed: int = 0
    """Seed of the sampling; without effect at temperature 0."""
    batch_size: int = Field(default=8, ge=1)
    """Dialogues that are answered together; more is faster and takes more memory."""


def _with_kinds(value: Any) -> Any:
    """A task may be written by its name alone."""
    items = [value] if isinstance(value, str | dict) else value
    if not isinstance(items, list | tuple):
        return items
    return [{"kind": item} if isinstance(item, str) else item for item in items]


class EvaluateJob(Reading, frozen=True):
    """Measure a model, alone or beside another, and write a report."""

    model: str
    """Checkpoint under test: a folder (whole model or adapter), or a name that can be pulled. With
    `endpoint`, the model's name there. The folder of an earlier report stands for what it says."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Ask `model` at this OpenAI-compatible address, with `/v1`, instead of loading it."""
    compare: str | None = None
    """A second model measured on the same material, usually the one before tuning; or the folder of
    an earlier report."""
    compare_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Ask `compare` at this address."""
    history: list[Path] = Field(default=[])
    """Folders of earlier reports, whose scores the report shows over time."""
    key_variable: str | None = None
    """Environment variable that holds the endpoints' API key."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one reply of an endpoint."""
    parallel: int = Field(default=8, ge=1)
    """Requests to an endpoint that are under way at once."""
    dataset: list[str] = Field(default=[])
    """Held-out dialogues: files, folders or catalog names, none of them trained on."""
    suite: list[Path] = Field(default=[])
    """YAML or JSON Lines files with questions and what their answers must or must not be."""
    tasks: Annotated[
        list[Annotated[Task, OneOf("dialoop.evaluate.tasks")]], BeforeValidator(_with_kinds)
    ] = Field(default=[])
    """What is measured: a name, or a mapping such as `{kind: choice, files: [mmlu.zip]}`; empty
    takes loss, answers and suite where their material is given."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `npu`."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number type of the weights; `auto` takes bf16 where the device is fast at it."""
    max_length: int = Field(default=2048, ge=16)
    """Longest dialogue that is scored, in tokens; longer ones are left out, counted and named."""
    generation: Generation = Generation()
    """How answers are generated."""
    output: Path | None = None
    """Folder for report.json, report.md and report.html; nothing is written without it."""

    aliases: ClassVar[Mapping[str, str]] = {
        "o": "output",
        "output_dir": "output",
        "model_id_or_path": "model",
        "val_dataset": "dataset",
        "max_new_tokens": "generation.max_new_tokens",
        "temperature": "generation.temperature",
        "top_p": "generation.top_p",
        "seed": "generation.seed",
        "batch_size": "generation.batch_size",
    }

    def at(self, url: str, model: str) -> Endpoint:
        """Where a model is asked."""
        return Endpoint(
            url=url,
            model=model,
            key_variable=self.key_variable,
            timeout_s=self.timeout_s,
            parallel=self.parallel,
        )
