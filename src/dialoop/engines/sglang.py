"""SGLang as a server of its own.

Answers come from `/generate`, which takes token ids and gives them back bit by bit
(`--incremental-streaming-output`). Written against SGLang 0.5.21 (torch 2.13; 0.5.17 for 2.11),
read in its wheels; it has no CPU build on the package index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.core.errors import UpstreamError, UserError
from dialoop.engines import Delta
from dialoop.engines.external import Abilities, Json, Launch, strip_stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.engines import Request
    from dialoop.engines.external import EngineSpec, Lora

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_METHODS = {"ngram": "NGRAM", "eagle": "EAGLE", "eagle3": "EAGLE3", "draft_model": "STANDALONE"}


class Sglang:
    """The adapter to SGLang's server."""

    kind = "sglang"
    environment = "sglang"
    module = "sglang"
    abilities = Abilities(
        devices=("cuda",),
        dtypes=("bf16", "fp16", "fp32"),
        formats=frozenset({"awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "mxfp4"}),
        load_formats=("fp8", "bitsandbytes"),
        cache_dtypes=("auto", "fp8"),
        multimodal=True,
        tools=True,
        structured=True,
        logprobs=True,
        embeddings=True,
        rerank=True,
        adapters="run time",
    )

    def refuse(self, spec: EngineSpec) -> None:
        """Settings of CPU engines."""
        if spec.cache_gb or spec.threads:
            raise UserError(
                "cache_gb and threads are for engines on a CPU",
                hint="use `--external.memory_share`",
            )

    def launch(self, spec: EngineSpec, port: int) -> Launch:
        """`sglang.launch_server`."""
        arguments = [
            *("-m", "sglang.launch_server", "--model-path", str(spec.model)),
            *("--served-model-name", spec.name, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", _DTYPES[spec.dtype], "--context-length", str(spec.max_length)),
            *("--max-running-requests", str(spec.max_concurrent), "--tp-size"),
            *(str(spec.tensor_parallel), "--sampling-defaults", "openai"),
            "--incremental-streaming-output",
        ]
        if not spec.prefix_cache:
            arguments.append("--disable-radix-cache")
        if not spec.chunked_prefill:
            arguments += ["--chunked-prefill-size", "-1"]
        if spec.load_as:
            arguments += ["--quantization", spec.load_as]
        if spec.cache_dtype != "auto":
            arguments += ["--kv-cache-dtype", "fp8_e4m3"]
        if spec.memory_share is not None:
            arguments += ["--mem-fraction-static", str(spec.memory_share)]
        if spec.has_our_code:
            arguments.append("--trust-remote-code")
        if spec.tool_parser:
            arguments += ["--tool-call-parser", spec.tool_parser]
        if spec.reasoning_parser:
            arguments += ["--reasoning-parser", spec.reasoning_parser]
        arguments += [*_adapters(spec), *_speculative(spec), *spec.extra]
        return Launch(tuple(arguments), {"HF_HUB_OFFLINE": "1"})

    def ask(self, request: Request, name: str, adapter: str | None) -> tuple[str, Json]:
        """A streamed answer to token ids; its route has one base, which needs no name."""
        del name
        sampling = request.sampling
        params: Json = {
            "max_new_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "ignore_eos": True,
            "stop_token_ids": list(request.stop_ids),
        }
        if sampling.seed is not None:
            params["sampling_seed"] = sampling.seed
        body: Json = {"input_ids": list(request.prompt_ids), "sampling_params": params}
        return "/generate", body | {"stream": True, "lora_path": adapter}

    def reader(self, request: Request) -> Callable[[Json], Delta | None]:
        """Each event has the new tokens; an aborted answer is an error."""

        def read(event: Json) -> Delta | None:
            ids = tuple(event.get("output_ids") or ())
            reason = event["meta_info"].get("finish_reason")
            if reason is None:
                return Delta(ids) if ids else None
            if reason["type"] not in ("stop", "length"):
                raise UpstreamError(f"sglang ended the answer: {reason.get('message', reason)}")
            return Delta(strip_stop(ids, request), reason["type"])

        return read

    def load(self, lora: Lora) -> tuple[str, Json]:
        """SGLang's route for it."""
        return "/load_lora_adapter", {"lora_name": lora.name, "lora_path": str(lora.folder)}

    def unload(self, name: str) -> tuple[str, Json]:
        """The counterpart."""
        return "/unload_lora_adapter", {"lora_name": name}


def _adapters(spec: EngineSpec) -> list[str]:
    if not spec.max_adapters:
        return []
    listed = [f"{lora.name}={lora.folder}" for lora in spec.adapters]
    return [
        # the base model's requests take a place, too
        *("--enable-lora", "--max-loras-per-batch", str(spec.max_adapters + 1)),
        *("--max-lora-rank", str(spec.max_lora_rank), "--lora-target-modules", "all"),
        *(["--lora-paths", *listed] if listed else []),
    ]


def _speculative(spec: EngineSpec) -> list[str]:
    wanted = spec.speculative
    if wanted is None:
        return []
    found = ["--speculative-algorithm", _METHODS[wanted.method]]
    if wanted.draft_model:
        found += ["--speculative-draft-model-path", wanted.draft_model]
    if wanted.method == "ngram":
        return [*found, "--speculative-num-draft-tokens", str(wanted.num_tokens)]
    # a chain of guesses, checked together with the token before them
    num = wanted.num_tokens
    found += ["--speculative-num-steps", str(num), "--speculative-eagle-topk", "1"]
    return [*found, "--speculative-num-draft-tokens", str(num + 1)]
