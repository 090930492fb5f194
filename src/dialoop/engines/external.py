"""What an engine of another project is to us: the spec it is started from, and its contract.

One `EngineSpec` describes what is wanted; a file an engine turns it into a command line, says what
it cannot do before anything starts, and speaks the engine's own route for token ids. Prompts go
over as token ids and answers come back as such, so that templates and tokenizers cannot drift
apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dialoop.core.errors import UserError
from dialoop.models import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dialoop.engines import Delta, Request
    from dialoop.engines.spec import Speculative

Json = dict[str, Any]
CacheType = Literal["auto", "fp8", "int8", "int4"]


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter on the base model."""

    name: str
    folder: Path
    rank: int


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine, wholly resolved: nothing is left to the engine's own defaults that we know of."""

    model: Path
    """The base checkpoint."""
    name: str
    """What the engine calls it."""
    family: str
    """`model_type` of its configuration."""
    quant: Json | None
    """Its `quantization_config`."""
    head_dim: int
    is_multimodal: bool
    max_length: int
    dtype: Literal["bf16", "fp16", "fp32"]
    device: Literal["cuda", "cpu"]
    max_concurrent: int
    load_as: str | None = None
    """What to quantize a plain checkpoint to while it loads."""
    tensor_parallel: int = 1
    cache_dtype: CacheType = "auto"
    cache_gb: int | None = None
    memory_share: float | None = None
    threads: int | None = None
    prefix_cache: bool = True
    chunked_prefill: bool = True
    adapters: tuple[Lora, ...] = ()
    max_adapters: int = 0
    """Adapters that may be loaded together, those at the start included."""
    max_lora_rank: int = 0
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    speculative: Speculative | None = None
    extra: tuple[str, ...] = ()
    """Raw arguments, last on the command line."""
    has_our_code: bool = False
    """Whether the checkpoint's Python files are those that dialoop ships."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can do: the row of the capability table, checked before anything starts."""

    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    formats: frozenset[str]
    """Values of `quant_method` that it reads."""
    load_formats: tuple[str, ...]
    """What it can quantize to while it loads."""
    cache_dtypes: tuple[CacheType, ...]
    multimodal: bool
    tools: bool
    structured: bool
    logprobs: bool
    embeddings: bool
    rerank: bool
    adapters: Literal["run time", "start", "none"]
    """When LoRA adapters can be loaded."""
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why not, by ability or format, where more can be said than no."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine's process is started."""

    arguments: tuple[str, ...]
    """After the interpreter of the engine's environment."""
    environment: Mapping[str, str]


class External(Protocol):
    """What a file an engine implements."""

    kind: str
    """Its name on the command line."""
    environment: str
    """The environment that `dialoop engine install` makes for it."""
    module: str
    """What the environment must be able to import."""
    abilities: Abilities

    def refuse(self, spec: EngineSpec) -> None:
        """Say what this engine cannot do of a spec, beyond its row of the table.

        Raises:
            UserError: it cannot.
        """
        ...

    def launch(self, spec: EngineSpec, port: int) -> Launch:
        """The command that serves a spec on a port of this machine only."""
        ...

    def ask(self, request: Request, name: str, adapter: str | None) -> tuple[str, Json]:
        """The route and the body of a request.

        Args:
            request: what to answer.
            name: the base's.
            adapter: that of a loaded adapter, if one is to answer.

        Raises:
            UserError: the engine's route cannot express it.
        """
        ...

    def reader(self, request: Request) -> Callable[[Json], Delta | None]:
        """What turns the events of one answer into deltas, in order."""
        ...

    def load(self, lora: Lora) -> tuple[str, Json]:
        """The route and the body that load an adapter while the engine runs."""
        ...

    def unload(self, name: str) -> tuple[str, Json]:
        """The route and the body that forget an adapter."""
        ...


def check(engine: External, spec: EngineSpec) -> None:
    """Refuse at plan time what would fail late.

    Raises:
        UserError: the engine cannot run this spec; the message says why.
    """
    able, kind = engine.abilities, engine.kind
    if spec.device not in able.devices:
        raise UserError(
            f"{kind} runs on {' and '.join(able.devices)}, not on {spec.device}",
            hint=_other(spec.device),
        )
    if spec.dtype not in able.dtypes:
        raise UserError(
            f"{kind} computes in {', '.join(able.dtypes)}, not in {spec.dtype}",
            hint=f"use `--dtype {able.dtypes[0]}`",
        )
    _check_format(engine, spec)
    if spec.cache_dtype not in able.cache_dtypes:
        raise UserError(
            f"external.cache_dtype: {kind} offers {', '.join(able.cache_dtypes)}, "
            f"not {spec.cache_dtype}",
            hint="leave it out, or use another engine",
        )
    if spec.is_multimodal and not able.multimodal:
        raise UserError(f"{kind} does not run models that see images", hint="use another engine")
    if (spec.adapters or spec.max_adapters) and able.adapters == "none":
        raise UserError(
            f"{kind} cannot apply adapters: {able.reasons['adapters']}",
            hint="merge the adapter into its base with `dialoop merge`, and serve that",
        )
    engine.refuse(spec)


def _check_format(engine: External, spec: EngineSpec) -> None:
    able, kind = engine.abilities, engine.kind
    method = spec.quant["quant_method"] if spec.quant else None
    if method and method not in able.formats:
        why = able.reasons.get(method, f"it reads {', '.join(sorted(able.formats))}")
        raise UserError(
            f"{kind} cannot read a checkpoint quantized as `{method}`: {why}",
            hint="quantize to a format that it reads, or use another engine",
        )
    if spec.load_as and method:
        raise UserError(
            f"external.load_as: the checkpoint is quantized already (`{method}`)",
            hint="leave it out",
        )
    if spec.load_as and spec.load_as not in able.load_formats:
        offered = ", ".join(able.load_formats) or "nothing"
        raise UserError(
            f"external.load_as: {kind} quantizes to {offered} on loading, not to {spec.load_as}",
            hint="quantize the checkpoint first, or use another engine",
        )


def _other(device: str) -> str:
    known = {"cpu": "use `--engine auto` or `--engine vllm-cpu`", "cuda": "use `--engine vllm`"}
    return known[device]


def read_lora(name: str, folder: Path) -> Lora:
    """The facts of an adapter folder that every engine needs.

    Raises:
        UserError: no adapter, or one that no engine of others applies as it was trained.
    """
    config = checkpoint.read_json(folder / checkpoint.ADAPTER)
    odd = [
        key
        for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
        if config.get(key)
    ]
    if config.get("trainable_token_indices"):
        odd.append("trainable_token_indices")
    if odd:
        raise UserError(
            f"`{folder}`: external engines do not apply an adapter with {', '.join(odd)}",
            hint="merge it into its base with `dialoop merge`, and serve that",
        )
    return Lora(name, folder, int(config["r"]))


def strip_stop(ids: tuple[int, ...], request: Request) -> tuple[int, ...]:
    """The last tokens of an answer without the one that ended it."""
    return ids[:-1] if ids and ids[-1] in request.stop_ids else ids
