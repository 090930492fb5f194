"""What can be asked of models: pull, list, show, merge; and the facts that plans are made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dialoop.core.schema import Result, Spec

Dtype = Literal["auto", "bf16", "fp16", "fp32"]
DTYPE_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The shape of a decoder, known without loading it."""

    family: str
    """`model_type` of its config: `llama`, `internlm3`, `qwen2`, ..."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    """Whether the output head is the embedding."""
    max_positions: int
    """Longest sequence that the positions were trained for, in tokens."""
    num_parameters: int
    """Tied weights counted once."""
    weight_bytes: int
    """Bytes of the weights on disk; two a parameter when they are not on this machine."""


class PullJob(Spec, frozen=True):
    """Bring a model onto this machine, checked and cached."""

    name: str
    """A short name (`starter`, `qwen3-0.6b`; see `dialoop models list`), a folder, or an address:
    `hf://org/name[@revision]`, `ms://org/name[@revision]`, `registry://starter`."""


class ListJob(Spec, frozen=True):
    """Which models are known by a short name, and which of them are on this machine."""


class ShowJob(Spec, frozen=True):
    """What a model is: its shape, size, licence and where it comes from."""

    name: str
    """A short name, an address, or a checkpoint folder."""


class MergeJob(Spec, frozen=True):
    """Merge a LoRA adapter into its base model and check that both give the same logits."""

    aliases: ClassVar[Mapping[str, str]] = {"o": "output", "output_dir": "output"}

    model: str
    """The adapter's folder; its base model is found through its `adapter_config.json`."""
    output: Path
    """Folder of the merged checkpoint; it must not exist yet, or be empty."""
    base: str | None = None
    """The base model, where it is no longer where the adapter says."""
    device: str = "cpu"
    """Where to merge: `cpu`, `auto`, `cuda`, `cuda:1`, `npu`."""
    max_shard_bytes: int = 5 * 10**9
    """Largest weight file, in bytes; usually 1 to 10 GB."""


class PullResult(Result, frozen=True):
    """Where the model lies."""

    name: str
    path: Path

    def text(self) -> str:
        """One line."""
        return f"{self.name} is at {self.path}"
