"""What can be asked of an embedded engine: which one, and how much of the machine it may use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dialoop.core.schema import Spec


class EngineSettings(Spec, frozen=True):
    """The engine that runs the model."""

    engine: Literal["auto", "openvino", "transformers"] = "auto"
    """Which engine. `auto` takes OpenVINO on a CPU where it can run the model and agrees with
    transformers token for token, else transformers; a note says which and why."""
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
    """OpenVINO: memory for keys and values of all requests together, in whole GB. Unless given:
    enough for one request of `max_length`, at least 1. What does not fit waits."""
    prefix_tokens: int | None = Field(default=None, ge=0)
    """transformers: tokens of earlier prompts and answers whose keys and values are kept, so that
    what begins alike is not read again; 0 keeps none. 8192 unless given."""
    adapters: dict[str, str] = Field(default={})
    """LoRA adapters beside the model, folders by name, as in `--adapters.tone DIR`. A request that
    names one as its model is answered with it, others by the model alone."""
    max_adapters: int = Field(default=4, ge=1)
    """OpenVINO: adapters that are ready at once; each takes the model's memory and a cache of its
    own. The others are loaded when they are asked for, in place of the one used longest ago."""
