"""Which engine runs a model: made ready, checked once, and always reported."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.device import find, machine_memory_bytes
from dialoop.core.env import home, num_cpus, variables
from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Note, Stage, ignore
from dialoop.core.files import lock_folder, sha256, write_text
from dialoop.engines.convert import FAMILIES, check_file
from dialoop.engines.openvino import adapter_scale
from dialoop.engines.process import ProcessEngine
from dialoop.engines.worker import WorkerJob
from dialoop.models import checkpoint, heads
from dialoop.models.lineage import base_fingerprint
from dialoop.models.load import base_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dialoop.core.events import Event
    from dialoop.engines import Task
    from dialoop.engines.spec import EngineSettings

ACCELERATORS = (Path("/dev/nvidiactl"), Path("/dev/davinci_manager"))
"""Files that are there when a CUDA or an Ascend driver is."""
QUIET = {"CI": "true"}
"""OpenVINO's converter reports its use to its maker unless it finds itself in a CI job; the other
way to decline is a file in the user's home."""
PREFIX_TOKENS = 8192
DEFAULT_LENGTH = 4096
"""For checkpoints that do not say how long their prompts may be."""


def prepare(model: Path, settings: EngineSettings, emit: Callable[[Event], None]) -> ProcessEngine:
    """Choose an engine for a checkpoint and make the checkpoint ready for it; does not start it.

    Args:
        model: a checkpoint or a PEFT adapter, on disk.
        settings: what was asked for.
        emit: receives a note that names the engine and the reason.

    Raises:
        UserError: the model cannot be run as asked.
        MachineError: a package or memory is missing.
    """
    adapter = model if checkpoint.is_adapter(model) else None
    base = base_of(model) if adapter else model
    checkpoint.check(base)
    for folder in named_adapters(base, adapter, settings).values():
        check_base(base, Path(folder))
    length = max_length(base, settings)
    task = _task(model, settings)
    if task != "generate":
        emit(Note(f"engine: transformers, for a model that is asked to {task}"))
        return _transformers(base, adapter, length, settings, task)
    if settings.engine == "transformers":
        emit(Note("engine: transformers, as asked"))
        return _transformers(base, adapter, length, settings)
    try:
        _refuse_openvino(base, adapter, settings)
        folder = _converted(base, adapter, emit)
        for other in settings.adapters.values():
            adapter_scale(Path(other))
            _converted(base, Path(other), emit)
    except (UserError, MachineError) as error:
        if settings.engine == "openvino":
            raise
        reason = Exception.__str__(error)
        emit(Note(f"engine: transformers, because {reason}"))
        return _transformers(base, adapter, length, settings)
    emit(Note("engine: openvino, checked against transformers token for token"))
    return _openvino(folder, base, adapter, length, settings)


def _openvino(
    folder: Path, base: Path, adapter: Path | None, length: int, settings: EngineSettings
) -> ProcessEngine:
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bf16" if find("cpu").supports_bf16 else "fp32"
    threads = settings.threads or num_cpus()
    # With one thread, oneDNN's AMX kernels for bf16 die of SIGFPE (openvino 2026.4).
    is_narrow = dtype == "bf16" and min(threads, num_cpus()) == 1
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"} if is_narrow else {}
    capacity = cache_gb(base, length, dtype, settings.cache_gb)
    job = WorkerJob(
        engine="openvino",
        folder=str(folder),
        adapter=str(adapter) if adapter else None,
        max_length=length,
        dtype=dtype,
        device="cpu",
        threads=threads,
        max_concurrent=settings.max_concurrent,
        cache_gb=capacity,
        adapters=settings.adapters,
        max_adapters=settings.max_adapters,
    )

    def admit(other: Path) -> None:
        check_base(base, other)
        adapter_scale(other)
        _converted(base, other, ignore)

    return ProcessEngine(job, QUIET | environment, settings.stall_s, admit)


def cache_gb(base: Path, length: int, dtype: str, wanted: int | None) -> int:
    """Memory for keys and values: a request that it could never hold would end others, too."""
    config = checkpoint.read_json(base / "config.json")
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    numbers = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * width
    one_request = length * numbers * (4 if dtype == "fp32" else 2)
    needed = math.ceil(one_request / 2**30 + 0.01)  # a little for half-filled blocks
    if wanted is not None and wanted < needed:
        raise UserError(
            f"cache_gb: {wanted} GB cannot hold one request of {length} tokens",
            hint=f"use {needed}, or a smaller `--max_length`",
        )
    return wanted or needed


def _task(model: Path, settings: EngineSettings) -> Task:
    """What is asked of a model.

    Raises:
        UserError: it does not end in what that needs.
    """
    head = heads.head_of(model)
    known: dict[heads.Head, Task] = {"tokens": "generate", "none": "embed", "score": "rerank"}
    task = known[head] if settings.task == "auto" else settings.task
    if task == "generate":
        heads.refuse_other(model, "tokens")
    elif task == "rerank":
        heads.refuse_other(model, "score")
    elif head == "score":
        raise UserError(f"`{model}` ends in scores, which are no vectors", hint="let it rerank")
    if task != "generate" and settings.engine == "openvino":
        raise UserError(f"OpenVINO is not asked to {task} here", hint="use `--engine transformers`")
    if task != "generate" and settings.adapters:
        raise UserError(f"`adapters` are for models that write, not to {task}")
    return task


def _transformers(
    base: Path,
    adapter: Path | None,
    length: int,
    settings: EngineSettings,
    task: Task = "generate",
) -> ProcessEngine:
    device = settings.device
    if device == "auto":
        device = "auto" if _has_accelerator() else "cpu"
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bf16" if find(device).supports_bf16 else "fp32"
    job = WorkerJob(
        engine="transformers" if task == "generate" else "reader",
        task=task,
        folder=str(base),
        adapter=str(adapter) if adapter else None,
        max_length=length,
        dtype=dtype,
        device=device,
        threads=settings.threads or max(1, num_cpus() - 1),
        max_concurrent=settings.max_concurrent,
        cache_gb=0,
        adapters=settings.adapters,
        prefix_tokens=PREFIX_TOKENS if settings.prefix_tokens is None else settings.prefix_tokens,
    )
    return ProcessEngine(job, None, settings.stall_s, partial(check_base, base))


def named_adapters(base: Path, adapter: Path | None, settings: EngineSettings) -> dict[str, str]:
    """The adapters that were asked for beside the model.

    Raises:
        UserError: the model is an adapter itself.
    """
    if settings.adapters and adapter:
        raise UserError(
            f"`{adapter}` is an adapter itself, and `adapters` go beside their base",
            hint=f"give `{base}` as the model, and all adapters by name",
        )
    return settings.adapters


def check_base(base: Path, adapter: Path) -> None:
    """Check that a folder is an adapter of this base.

    Raises:
        UserError: it is none, or one of another base.
    """
    if not adapter.is_dir() or not checkpoint.is_adapter(adapter):
        raise UserError(f"`{adapter}` is no adapter", hint="give the folder of a LoRA adapter")
    recorded = base_fingerprint(adapter)
    is_same = base_of(adapter).resolve() == base.resolve()
    if not is_same and recorded != checkpoint.fingerprint(base):
        raise UserError(
            f"adapter `{adapter}` is for another base than `{base}`",
            hint="serve the base model that the adapter was trained on",
        )


def _has_accelerator() -> bool:
    return any(path.exists() for path in ACCELERATORS)


def max_length(base: Path, settings: EngineSettings) -> int:
    """Prompt and answer together, in tokens, as asked for or as the model was made for.

    Raises:
        UserError: the model was made for fewer.
    """
    limit = load_tokenizer(base).max_length
    wanted = settings.max_length
    if wanted and limit and wanted > limit:
        raise UserError(
            f"max_length {wanted} is more than the {limit} tokens that the model was made for",
            hint=f"use at most {limit}",
        )
    return wanted or limit or DEFAULT_LENGTH


def _refuse_openvino(base: Path, adapter: Path | None, settings: EngineSettings) -> None:
    """Raise where OpenVINO cannot run this model as asked."""
    config = checkpoint.read_json(base / "config.json")
    family = config.get("model_type")
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not _has_accelerator())
    if not on_cpu:
        raise UserError("OpenVINO runs on the CPU here", hint="use `--device cpu`")
    if settings.dtype == "fp16":
        raise UserError("OpenVINO has no fp16 on a CPU", hint="use `--dtype bf16` or `fp32`")
    if settings.dtype == "bf16" and not find("cpu").supports_bf16:
        raise MachineError(
            "this CPU has no bf16 arithmetic, which OpenVINO needs for it",
            hint="use `--dtype fp32`",
        )
    if importlib.util.find_spec("openvino_genai") is None:
        raise MachineError(
            "the package `openvino-genai` is missing", hint="pip install 'dialoop[serve]'"
        )
    if family not in FAMILIES:
        raise UserError(
            f"OpenVINO was not tried with model type `{family}` (known: {', '.join(FAMILIES)})",
            hint="use `--engine transformers`",
        )
    if config.get("quantization_config"):
        raise UserError(
            "OpenVINO cannot read a quantized checkpoint", hint="use `--engine transformers`"
        )
    if settings.prefix_tokens:
        raise UserError(
            "OpenVINO's prefix cache mixes up requests, so that it is off here",
            hint="use `--engine transformers`, or leave `--prefix_tokens` out",
        )
    if adapter:
        adapter_scale(adapter)


def _converted(base: Path, adapter: Path | None, emit: Callable[[Event], None]) -> Path:
    """The OpenVINO model of a checkpoint, from the cache or made now.

    Raises:
        MachineError: there is no memory for it, or the conversion failed.
        UserError: it does not agree with transformers.
    """
    target = home() / "openvino" / content_key(base)
    result = check_file(target, adapter)
    if not result.exists():
        _refuse_size(base)
        with _lock(target, emit):
            if not result.exists():
                emit(Stage("convert the model for OpenVINO and check it, once"))
                _run_conversion(base, target, adapter)
    check: dict[str, Any] = json.loads(result.read_text("utf-8"))
    if not check["agrees"]:
        raise UserError(
            f"OpenVINO's float32 answers differ from transformers' ({check['difference']})",
            hint="use `--engine transformers`",
        )
    return target


def _refuse_size(base: Path) -> None:
    needed = 2 * sum(path.stat().st_size for path in base.glob("*.safetensors"))
    if needed > 0.7 * machine_memory_bytes():
        raise MachineError(
            f"checking the model needs {needed / 2**30:.0f} GiB for it in float32",
            hint="use a machine with more memory, or `--engine transformers`",
        )


@contextmanager
def _lock(target: Path, emit: Callable[[Event], None]) -> Generator[None, None, None]:
    """Only one process converts a model; others wait for it."""
    folder = target.parent / f"{target.name}.lock"
    with ExitStack() as stack:
        if not _is_held(stack, folder):
            emit(Note("another process converts this model for OpenVINO; waiting for it"))
            while not _is_held(stack, folder):
                time.sleep(1)
        yield


def _is_held(stack: ExitStack, folder: Path) -> bool:
    try:
        stack.enter_context(lock_folder(folder, "conversion"))
    except UserError:
        return False
    return True


def _run_conversion(base: Path, target: Path, adapter: Path | None) -> None:
    command = [sys.executable, "-m", "dialoop.engines.convert", str(base), str(target)]
    done = subprocess.run(  # noqa: S603  our own module
        [*command, *([str(adapter)] if adapter else [])],
        env=variables(HF_HUB_OFFLINE="1", **QUIET),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MachineError(
            f"the conversion to OpenVINO failed ({last})", hint="use `--engine transformers`"
        )


def content_key(folder: Path) -> str:
    """A name for what a checkpoint holds: the digests of its files, remembered by size and time."""
    memory = home() / "openvino" / "digests.json"
    known: dict[str, str] = json.loads(memory.read_text("utf-8")) if memory.exists() else {}
    found: dict[str, str] = {}
    whole = hashlib.sha256()
    for path in sorted(_weight_files(folder)):
        facts = path.stat()
        mark = f"{path.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"
        found[mark] = known.get(mark) or sha256(path)
        whole.update(f"{path.name} {found[mark]}\n".encode())
    if not found.keys() <= known.keys():
        write_text(memory, json.dumps(known | found))
    return whole.hexdigest()[:24]


def _weight_files(folder: Path) -> list[Path]:
    return [path for kind in ("safetensors", "bin", "json") for path in folder.glob(f"*.{kind}")]
