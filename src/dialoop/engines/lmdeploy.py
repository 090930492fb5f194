"""LMDeploy as a server of its own, with its TurboMind or its PyTorch back-end.

Answers come from `/generate`, which takes token ids and gives them back. That route knows no
adapters, seeds and penalties, and so they are refused. Written against LMDeploy 0.18.0, read in its
wheel; it needs a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dialoop.core.errors import UpstreamError, UserError
from dialoop.engines import Delta
from dialoop.engines.external import Abilities, Json, Launch, strip_stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.engines import Request
    from dialoop.engines.external import EngineSpec, Lora

_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
_CACHE = {"int8": "8", "int4": "4", "fp8": "fp8"}
_NO_ADAPTERS = "its route for token ids takes none, and it loads none while it runs"


class Lmdeploy:
    """The adapter to LMDeploy's server.

    Args:
        kind: `lmdeploy` is TurboMind, `lmdeploy-pytorch` the other back-end.
    """

    environment = "lmdeploy"
    module = "lmdeploy"

    def __init__(self, kind: Literal["lmdeploy", "lmdeploy-pytorch"]) -> None:
        self.kind: str = kind
        self._is_turbomind = kind == "lmdeploy"
        both = {"awq", "fp8"}
        formats = both | (
            {"gptq", "compressed-tensors"} if self._is_turbomind else {"smooth_quant"}
        )
        why = "its PyTorch back-end reads awq, block-wise fp8 and its own smooth_quant"
        self.abilities = Abilities(
            devices=("cuda",),
            dtypes=("bf16", "fp16"),
            formats=frozenset(formats),
            load_formats=(),
            cache_dtypes=("auto", "int8", "int4", *(() if self._is_turbomind else ("fp8",))),
            multimodal=True,
            tools=True,
            structured=True,
            logprobs=True,
            embeddings=False,
            rerank=False,
            adapters="none",
            reasons={"adapters": _NO_ADAPTERS, "gptq": why, "compressed-tensors": why},
        )

    def refuse(self, spec: EngineSpec) -> None:
        """Settings that LMDeploy has in another sense or not, and groups it does not read."""
        for is_asked, what, hint in (
            (spec.cache_gb or spec.threads, "cache_gb and threads are for engines on a CPU", None),
            (
                spec.memory_share is not None,
                "external.memory_share is of the whole memory, and LMDeploy's is of what the "
                "weights leave",
                "use `--external.extra --cache-max-entry-count=0.5`",
            ),
            (
                not spec.chunked_prefill,
                "external.chunked_prefill: LMDeploy always reads long prompts in parts",
                None,
            ),
            (
                spec.speculative and self._is_turbomind,
                "external.speculative: TurboMind does not guess ahead",
                "use `--engine lmdeploy-pytorch`",
            ),
            (
                spec.speculative and spec.speculative.method not in ("eagle", "eagle3"),
                "external.speculative.method: LMDeploy knows eagle and eagle3",
                None,
            ),
        ):
            if is_asked:
                raise UserError(what, hint=hint or "leave it out, or use another engine")
        if spec.quant and self._is_turbomind:
            _refuse_groups(spec.quant)

    def launch(self, spec: EngineSpec, port: int) -> Launch:
        """`lmdeploy serve api_server`."""
        arguments = [
            *("-m", "lmdeploy", "serve", "api_server", str(spec.model)),
            *("--model-name", spec.name, "--server-name", "127.0.0.1"),
            *("--server-port", str(port)),
            *("--backend", "turbomind" if self._is_turbomind else "pytorch"),
            *("--dtype", _DTYPES[spec.dtype], "--session-len", str(spec.max_length)),
            *("--max-batch-size", str(spec.max_concurrent), "--tp", str(spec.tensor_parallel)),
            *("--generation-config", "lmdeploy"),
        ]
        if spec.prefix_cache:
            arguments.append("--enable-prefix-caching")
        if spec.cache_dtype != "auto":
            arguments += ["--quant-policy", _CACHE[spec.cache_dtype]]
        if spec.has_our_code:
            arguments.append("--trust-remote-code")
        if spec.tool_parser:
            arguments += ["--tool-call-parser", spec.tool_parser]
        if spec.reasoning_parser:
            arguments += ["--reasoning-parser", spec.reasoning_parser]
        if wanted := spec.speculative:
            arguments += ["--speculative-algorithm", wanted.method]
            arguments += ["--speculative-num-draft-tokens", str(wanted.num_tokens)]
            arguments += ["--speculative-draft-model", wanted.draft_model or ""]
        return Launch((*arguments, *spec.extra), {"HF_HUB_OFFLINE": "1"})

    def ask(self, request: Request, name: str, adapter: str | None) -> tuple[str, Json]:
        """A streamed answer to token ids.

        Raises:
            UserError: the request has what the route does not know.
        """
        del name
        sampling = request.sampling
        for is_asked, what in (
            (adapter, "adapter"),
            (sampling.seed is not None and sampling.temperature > 0, "seed"),
            (sampling.presence_penalty or sampling.frequency_penalty, "penalty"),
        ):
            if is_asked:
                raise UserError(
                    f"{self.kind} takes no {what} on its route for token ids",
                    hint="leave it out, or use another engine",
                )
        is_greedy = sampling.temperature == 0
        return "/generate", {
            "input_ids": list(request.prompt_ids),
            "max_tokens": sampling.max_tokens,
            "temperature": 1.0 if is_greedy else sampling.temperature,
            "top_k": 1 if is_greedy else sampling.top_k,
            "top_p": 1.0 if is_greedy else sampling.top_p,
            "ignore_eos": not request.stop_ids,
            "stop_token_ids": list(request.stop_ids),
            "stream": True,
        }

    def reader(self, request: Request) -> Callable[[Json], Delta | None]:
        """Each event has the new tokens; an error is an event of its own."""

        def read(event: Json) -> Delta | None:
            if "error" in event:
                raise UpstreamError(f"lmdeploy ended the answer: {event['error']}")
            ids = tuple(event["output_ids"] or ())
            reason = event["meta_info"]["finish_reason"]
            if reason is None:
                return Delta(ids) if ids else None
            if reason["type"] not in ("stop", "length"):
                raise UpstreamError(f"lmdeploy ended the answer: {reason['type']}")
            return Delta(strip_stop(ids, request), reason["type"])

        return read

    def load(self, lora: Lora) -> tuple[str, Json]:
        """LMDeploy cannot."""
        raise UserError(
            f"{self.kind} cannot load the adapter `{lora.name}`: {_NO_ADAPTERS}",
            hint="merge it into its base with `dialoop merge`",
        )

    def unload(self, name: str) -> tuple[str, Json]:
        """LMDeploy cannot."""
        raise UserError(
            f"{self.kind} cannot unload the adapter `{name}`: {_NO_ADAPTERS}",
            hint="use another engine",
        )


def _refuse_groups(quant: Json) -> None:
    """TurboMind's 4-bit kernels: awq and gptq in groups of 128, compressed-tensors of 32 or 128."""
    method = quant["quant_method"]
    if method == "compressed-tensors":
        groups = [group["weights"] for group in quant["config_groups"].values()]
        is_read = quant.get("format") == "pack-quantized" and all(
            weights["num_bits"] == 4 and weights.get("group_size") in (32, 128)
            for weights in groups
        )
        wants = "4-bit weights packed in groups of 32 or 128"
    elif method in ("awq", "gptq"):
        is_read = quant.get("group_size", quant.get("q_group_size")) == 128
        is_read = is_read and not quant.get("desc_act", False) and quant.get("sym", True)
        wants = "groups of 128, symmetric and in order for gptq"
    else:
        return
    if not is_read:
        raise UserError(
            f"lmdeploy's TurboMind reads {method} with {wants}, which this checkpoint has not",
            hint="quantize it so, or use `--engine vllm`",
        )
