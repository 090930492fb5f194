"""OpenVINO GenAI as an engine: paged cache and continuous batching on a CPU.

What was found by running it (openvino-genai 2026.4): a step holds the interpreter lock, so it lives
in a worker process; the cache's precision must be named, or greedy answers move; an adapter is
applied by a pipeline of its own (`MODE_FUSE`), because `add_request` ignores a request's adapter,
and its scale must be given, because the file's is not read.
"""

from __future__ import annotations

import json
import math
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoop.core.errors import DialoopError, MachineError, UserError
from dialoop.engines import Delta, EngineInfo, Request

if TYPE_CHECKING:
    from dialoop.engines.worker import Backend, WorkerJob

_PREFILL_TOKENS = 1024
_PRECISION = {"bf16": "bf16", "fp32": "f32"}


def open_backend(job: WorkerJob) -> Backend:
    """Load the converted model.

    Raises:
        MachineError: the package is missing, or the library cannot load the model.
    """
    try:
        import openvino_genai as genai
    except ModuleNotFoundError as error:
        raise MachineError(
            "the openvino engine needs the package `openvino-genai`",
            hint="pip install 'dialoop[serve]'",
        ) from error
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = job.cache_gb
    scheduler.max_num_batched_tokens = _PREFILL_TOKENS
    scheduler.max_num_seqs = job.max_concurrent
    # Requests that begin with the same cached answer write into one half-filled block, and all of
    # them then read the last one's tokens: three dialogues forked from one turn got one answer.
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    try:
        pipeline = genai.ContinuousBatchingPipeline(job.folder, scheduler, "CPU", _properties(job))
    except RuntimeError as error:
        raise MachineError(
            f"OpenVINO cannot load `{job.folder}`: {error}",
            hint="delete that folder, which is made again, or use `--engine transformers`",
        ) from error
    return OpenVinoBackend(pipeline, job)


def adapter_scale(folder: Path) -> float:
    """What the product B A of an adapter is multiplied with, from its PEFT configuration.

    Raises:
        UserError: OpenVINO cannot apply an adapter with these settings.
    """
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    refused = ("rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices")
    refused += ("use_dora", "lora_bias")
    if found := [name for name in refused if config.get(name)]:
        raise UserError(
            f"`{folder}`: OpenVINO cannot apply an adapter with {', '.join(found)}",
            hint="merge it with `dialoop merge`, or use `--engine transformers`",
        )
    rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    return config["lora_alpha"] / rank


def _properties(job: WorkerJob) -> dict[str, Any]:
    precision = _PRECISION[job.dtype]
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "INFERENCE_NUM_THREADS": job.threads,
        "ENABLE_CPU_PINNING": False,
    }
    if job.adapter:
        import openvino_genai as genai

        folder = Path(job.adapter)
        adapter = genai.Adapter(str(folder / "adapter_model.safetensors"))
        fuse = genai.AdapterConfig.Mode.MODE_FUSE
        properties["adapters"] = genai.AdapterConfig(adapter, adapter_scale(folder), fuse)
    return properties


class OpenVinoBackend:
    """A worker backend over one pipeline."""

    def __init__(self, pipeline: Any, job: WorkerJob) -> None:
        self.info = EngineInfo("openvino", job.max_length, job.dtype, "cpu", job.threads)
        self._pipeline = pipeline
        self._open: dict[int, tuple[Any, Request]] = {}

    def add(self, key: int, request: Request) -> None:
        """Hand a request to the pipeline."""
        import openvino as ov

        ids = ov.Tensor(np.array([request.prompt_ids], np.int64))
        handle = self._pipeline.add_request(key, ids, _config(request))
        self._open[key] = handle, request

    def abort(self, key: int) -> None:
        """Have the pipeline drop a request at its next step."""
        if found := self._open.pop(key, None):
            found[0].cancel()

    def has_work(self) -> bool:
        """Whether any request is open, or cancelled and not yet cleared away."""
        return bool(self._open) or self._pipeline.has_non_finished_requests()

    def step(self) -> list[tuple[int, Delta | DialoopError]]:
        """Step the pipeline and read what it has."""
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        out: list[tuple[int, Delta | DialoopError]] = []
        for key, (handle, request) in list(self._open.items()):
            deltas = [_delta(output, request) for output in _outputs(handle)]
            out += [(key, delta) for delta in deltas]
            if deltas and deltas[-1].finish:
                del self._open[key]
            elif _is_ignored(handle):
                del self._open[key]
                out.append((key, _cache_full()))
        return out


def _outputs(handle: Any) -> list[Any]:
    found: list[Any] = []
    while handle.can_read():
        found += handle.read().values()
    return found


def _is_ignored(handle: Any) -> bool:
    """Whether the pipeline gave a request up because its cache cannot hold it."""
    from openvino_genai.py_openvino_genai import GenerationStatus

    return handle.get_status() == GenerationStatus.IGNORED


def _cache_full() -> MachineError:
    return MachineError(
        "the request does not fit into the cache of the engine",
        hint="raise `--cache_gb`, or shorten the prompt",
    )


def _delta(output: Any, request: Request) -> Delta:
    import openvino_genai as genai

    ids = tuple(output.generated_ids)
    reasons = genai.GenerationFinishReason
    if output.finish_reason == reasons.NONE:
        return Delta(ids)
    if output.finish_reason == reasons.LENGTH:
        return Delta(ids, "length")
    return Delta(ids[:-1] if ids and ids[-1] in request.stop_ids else ids, "stop")


def _config(request: Request) -> Any:
    import openvino_genai as genai

    sampling = request.sampling
    is_sampled = sampling.temperature > 0
    options: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": is_sampled,
        "apply_chat_template": False,
        "ignore_eos": not request.stop_ids,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if request.stop_ids:
        options |= {"stop_token_ids": set(request.stop_ids), "eos_token_id": request.stop_ids[0]}
    if is_sampled:
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        options |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "rng_seed": seed % 2**63,
        }
        if sampling.top_k:
            options["top_k"] = sampling.top_k
    return genai.GenerationConfig(**options)
