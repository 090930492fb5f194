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
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoop.core.errors import DialoopError, MachineError, UserError
from dialoop.engines import Delta, EngineInfo, Request, TokenLogprob, unknown_adapter
from dialoop.engines.grammar import ebnf

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
        import openvino_genai  # noqa: F401  told apart here, before a model is touched
    except ModuleNotFoundError as error:
        raise MachineError(
            "the openvino engine needs the package `openvino-genai`",
            hint="pip install 'dialoop[serve]'",
        ) from error
    return OpenVinoBackend(_open_pipeline(job, job.adapter), job)


def _open_pipeline(job: WorkerJob, adapter: str | None) -> Any:
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = job.cache_gb
    scheduler.max_num_batched_tokens = _PREFILL_TOKENS
    scheduler.max_num_seqs = job.max_concurrent
    # Requests that begin with the same cached answer write into one half-filled block, and all of
    # them then read the last one's tokens: three dialogues forked from one turn got one answer.
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    properties = _properties(job, adapter)
    try:
        return genai.ContinuousBatchingPipeline(job.folder, scheduler, "CPU", properties)
    except RuntimeError as error:
        raise MachineError(
            f"OpenVINO cannot load `{job.folder}`: {error}",
            hint="delete that folder, which is made again, or use `--engine transformers`",
        ) from error


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


def _properties(job: WorkerJob, adapter_folder: str | None) -> dict[str, Any]:
    precision = _PRECISION[job.dtype]
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "INFERENCE_NUM_THREADS": job.threads,
        "ENABLE_CPU_PINNING": False,
    }
    if adapter_folder:
        import openvino_genai as genai

        folder = Path(adapter_folder)
        adapter = genai.Adapter(str(folder / "adapter_model.safetensors"))
        fuse = genai.AdapterConfig.Mode.MODE_FUSE
        properties["adapters"] = genai.AdapterConfig(adapter, adapter_scale(folder), fuse)
    return properties


class OpenVinoBackend:
    """A worker backend: a pipeline for the model, and one for each adapter that is in use.

    The adapters used least recently give up their pipelines; a request waits while all of them are
    busy with other adapters.
    """

    def __init__(self, pipeline: Any, job: WorkerJob) -> None:
        self.info = EngineInfo("openvino", job.max_length, job.dtype, "cpu", job.threads)
        self._job = job
        self._base = _Pipeline(pipeline)
        self._ready: OrderedDict[str, _Pipeline] = OrderedDict()
        """By adapter, the one used longest ago first."""
        self._adapters: dict[str, str] = {}
        self._waiting: list[tuple[int, Request]] = []
        for name, folder in job.adapters.items():
            self.load_adapter(name, folder)

    def add(self, key: int, request: Request) -> None:
        """Hand a request to its pipeline.

        Raises:
            UserError: it asks for what the library cannot do, its adapter is not loaded, or its
                schema is none.
            MachineError: a schema is asked for and the package that reads it is missing.
        """
        _refuse(request)
        if request.adapter is not None and request.adapter not in self._adapters:
            raise unknown_adapter(request.adapter, self._adapters)
        if pipeline := self._pipeline(request.adapter):
            pipeline.add(key, request)
        else:
            self._waiting.append((key, request))

    def abort(self, key: int) -> None:
        """Have the pipeline drop a request at its next step."""
        self._waiting = [item for item in self._waiting if item[0] != key]
        for pipeline in self._pipelines():
            pipeline.abort(key)

    def has_work(self) -> bool:
        """Whether any request is open, or cancelled and not yet cleared away."""
        return bool(self._waiting) or any(one.has_work() for one in self._pipelines())

    def load_adapter(self, name: str, folder: str) -> None:
        """Check that an adapter can be applied, and make it ready where there is room.

        Raises:
            UserError: OpenVINO cannot apply it.
            MachineError: the library cannot load it.
        """
        adapter_scale(Path(folder))
        self._adapters[name] = folder
        if len(self._ready) < self._job.max_adapters:
            self._ready[name] = self._opened(name)

    def unload_adapter(self, name: str) -> list[int]:
        """Forget an adapter; the keys of its open requests, which end."""
        del self._adapters[name]
        ended = [key for key, request in self._waiting if request.adapter == name]
        self._waiting = [item for item in self._waiting if item[1].adapter != name]
        if pipeline := self._ready.pop(name, None):
            ended += pipeline.open
        return ended

    def step(self) -> list[tuple[int, Delta | DialoopError]]:
        """Step the pipelines that have work and read what they have."""
        waiting, self._waiting = self._waiting, []
        out: list[tuple[int, Delta | DialoopError]] = []
        for key, request in waiting:
            try:
                self.add(key, request)
            except DialoopError as error:
                out.append((key, error))
        for pipeline in self._pipelines():
            if pipeline.has_work():
                out += pipeline.step()
        return out

    def _pipelines(self) -> list[_Pipeline]:
        return [self._base, *self._ready.values()]

    def _pipeline(self, adapter: str | None) -> _Pipeline | None:
        """The pipeline of an adapter, made ready if there is room; None while there is none."""
        if adapter is None:
            return self._base
        if adapter not in self._ready:
            if len(self._ready) >= self._job.max_adapters:
                idle = next((n for n, one in self._ready.items() if not one.has_work()), None)
                if idle is None:
                    return None
                del self._ready[idle]
            self._ready[adapter] = self._opened(adapter)
        self._ready.move_to_end(adapter)
        return self._ready[adapter]

    def _opened(self, adapter: str) -> _Pipeline:
        return _Pipeline(_open_pipeline(self._job, self._adapters[adapter]))


class _Pipeline:
    """One of the library's pipelines with its open requests."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.open: dict[int, tuple[Any, Request]] = {}

    def add(self, key: int, request: Request) -> None:
        """Hand a request to the library."""
        import openvino as ov

        ids = ov.Tensor(np.array([request.prompt_ids], np.int64))
        handle = self._pipeline.add_request(key, ids, _config(request))
        self.open[key] = handle, request

    def abort(self, key: int) -> None:
        """Have the library drop a request at its next step."""
        if found := self.open.pop(key, None):
            found[0].cancel()

    def has_work(self) -> bool:
        """Whether any request is open, or cancelled and not yet cleared away."""
        return bool(self.open) or self._pipeline.has_non_finished_requests()

    def step(self) -> list[tuple[int, Delta | DialoopError]]:
        """Step once and read what there is."""
        out: list[tuple[int, Delta | DialoopError]] = []
        if self._pipeline.has_non_finished_requests():
            try:
                self._pipeline.step()
            except RuntimeError as error:
                out += self._drop_schemas(error)
        for key, (handle, request) in list(self.open.items()):
            deltas = [_delta(output, request) for output in _outputs(handle)]
            out += [(key, delta) for delta in deltas]
            if deltas and deltas[-1].finish:
                del self.open[key]
            elif _is_ignored(handle):
                del self.open[key]
                out.append((key, _cache_full()))
        return out

    def _drop_schemas(self, error: RuntimeError) -> list[tuple[int, Delta | DialoopError]]:
        """End the requests with a schema: the library reads one late, and fails whole steps by it.

        Raises:
            RuntimeError: no schema can be the reason.
        """
        keys = [key for key, (_, request) in self.open.items() if request.schema]
        if not keys:
            raise error
        for key in keys:
            self.abort(key)
        return [(key, UserError(f"the engine cannot read the schema ({error})")) for key in keys]


def _refuse(request: Request) -> None:
    """Refuse what the library would ignore."""
    sampling = request.sampling
    hint = "start the server with `--engine transformers`"
    if sampling.logit_bias:
        raise UserError("logit_bias: OpenVINO cannot change logits", hint=hint)
    if sampling.logprobs:
        raise UserError(
            "top_logprobs: OpenVINO tells the log-probability of the chosen token only", hint=hint
        )


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
    told: tuple[TokenLogprob, ...] = ()
    if request.sampling.logprobs is not None:
        told = tuple(TokenLogprob(value) for value in output.generated_log_probs)
    reasons = genai.GenerationFinishReason
    if output.finish_reason == reasons.NONE:
        return Delta(ids, None, told)
    if output.finish_reason == reasons.LENGTH:
        return Delta(ids, "length", told)
    num = len(ids) - (bool(ids) and ids[-1] in request.stop_ids)
    return Delta(ids[:num], "stop", told[:num])


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
        "logprobs": int(sampling.logprobs is not None),
    }
    if request.schema is not None:
        grammar = ebnf(request.schema)
        options["structured_output_config"] = genai.StructuredOutputConfig(grammar=grammar)
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
