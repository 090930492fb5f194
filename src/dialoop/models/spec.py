"""What can be asked of models: pull, list, show, merge; and the facts that plans are made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel

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

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Output and input width of every linear layer between embedding and head, by path."""
        d, i = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = {
            "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q),
            "mlp.gate_proj": (i, d),
            "mlp.up_proj": (i, d),
            "mlp.down_proj": (d, i),
        }
        return {
            f"model.layers.{number}.{name}": shape
            for number in range(self.num_layers)
            for name, shape in layer.items()
        }


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


class ListedModel(BaseModel, frozen=True):
    """A row of `dialoop models list`."""

    name: str
    also: tuple[str, ...]
    num_parameters: int
    licence: str
    source: str
    path: Path | None
    """Where it lies; None while it is not on this machine."""


class ListResult(Result, frozen=True):
    """The models with a short name."""

    models: tuple[ListedModel, ...]

    def text(self) -> str:
        """A line a model."""
        rows = [("name", "size", "here", "source", "licence")]
        for model in self.models:
            size = f"{model.num_parameters / 1e9:.2f} B"
            also = f" (also {', '.join(model.also)})" if model.also else ""
            here = "yes" if model.path else "no"
            rows.append((model.name, size, here, model.source, model.licence + also))
        return "\n".join(
            f"{name:22} {size:>7}  {here:5} {source:41} {licence}"
            for name, size, here, source, licence in rows
        )


class ShowResult(Result, frozen=True):
    """A model's facts; the numbers are those of `ModelFacts`."""

    name: str
    path: Path | None
    huggingface: str
    modelscope: str
    licence: str
    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    max_positions: int
    num_parameters: int
    weight_bytes: int

    def text(self) -> str:
        """A line a fact that is known."""
        facts = self.model_dump(mode="json") | {
            "path": self.path or "not on this machine",
            "tied_embeddings": "yes" if self.tied_embeddings else "no",
            "num_parameters": f"{self.num_parameters:,}",
            "weight_bytes": f"{self.weight_bytes:,}",
        }
        shown = {name.replace("_", " "): value for name, value in facts.items() if value != ""}
        return "\n".join(f"{name:18} {value}" for name, value in shown.items())


class MergeResult(Result, frozen=True):
    """What was merged and how well it agrees."""

    path: Path
    num_layers: int
    """Linear layers that carried an update."""
    max_difference: float
    """Largest absolute difference of merged and unmerged logits, in nats, in the checkpoint's
    dtype."""
    tolerance: float
    greedy_agreement: float
    """Share of positions, 0 to 1, where both name the same next token; near ties count as same."""

    def text(self) -> str:
        """Two lines."""
        return (
            f"merged {self.num_layers} layers into {self.path}\n"
            f"the same next token at {self.greedy_agreement:.1%} of positions; logits differ by at"
            f" most {self.max_difference:.2g}, within the rounding of their type"
            f" ({self.tolerance:.2g})"
        )
