"""From a checkpoint and what was asked for to an external engine, checked and not yet started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dialoop.core.device import find
from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Note
from dialoop.engines.choose import cache_gb, check_base, max_length, named_adapters
from dialoop.engines.claims import Gpu, find_gpus
from dialoop.engines.environments import EXTERNALS, interpreter
from dialoop.engines.external import EngineSpec, check, read_lora
from dialoop.engines.served import ServedEngine
from dialoop.engines.supervisor import Patience, Program
from dialoop.models import checkpoint
from dialoop.models.load import base_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dialoop.core.events import Event
    from dialoop.engines.external import External, Json, Lora
    from dialoop.engines.spec import EngineSettings

_CODE = Path(__file__).parents[1] / "models" / "remote_code"


def prepare_external(
    model: Path, settings: EngineSettings, emit: Callable[[Event], None]
) -> ServedEngine:
    """An engine for a checkpoint, or for an adapter on its base; does not start it.

    Raises:
        UserError: the engine cannot run this model as asked.
        MachineError: the engine, or a GPU, is not here.
    """
    engine = EXTERNALS[settings.engine]
    for name in ("prefix_tokens", "max_adapters"):
        if name in settings.model_fields_set:
            raise UserError(
                f"{name}: {engine.kind} has none", hint="see --external.prefix_cache, .max_adapters"
            )
    if settings.task in {"embed", "rerank"}:
        raise UserError(
            f"task: {engine.kind} is not asked to {settings.task} here",
            hint="use `--engine transformers`",
        )
    default = read_lora(model.name, model) if checkpoint.is_adapter(model) else None
    base = base_of(model) if default else model
    checkpoint.check(base)
    own = default.folder if default else None
    adapters = [
        read_lora(name, Path(folder))
        for name, folder in named_adapters(base, own, settings).items()
    ]
    for lora in adapters:
        check_base(base, lora.folder)
    gpus = [] if "cpu" in engine.abilities.devices else _gpus(settings)
    spec = resolve(base, [default] if default else adapters, settings, gpus)
    check(engine, spec)
    python, environment = interpreter(engine, settings.external.python)
    emit(Note(f"engine: {engine.kind}, as asked, by {python}"))
    program = Program(
        engine=engine.kind,
        python=python,
        launch=lambda port: engine.launch(spec, port),
        environment=environment,
        gpus=gpus,
        num_gpus=spec.tensor_parallel if gpus else 0,
    )
    patience = Patience(settings.external.start_s, settings.external.restarts)
    name = default.name if default else None
    return ServedEngine(engine, spec, program, patience, settings.stall_s, emit, name)


def resolve(
    base: Path, adapters: Sequence[Lora], settings: EngineSettings, gpus: Sequence[Gpu]
) -> EngineSpec:
    """The spec of an engine: every `auto` decided.

    Raises:
        UserError: the model is shorter than asked for, or the cache too small.
        MachineError: the device is not here.
    """
    config = checkpoint.read_json(base / "config.json")
    engine, external = EXTERNALS[settings.engine], settings.external
    length = max_length(base, settings)
    device = _device(engine, settings)
    dtype = settings.dtype if settings.dtype != "auto" else _dtype(engine, gpus)
    memory = cache_gb(base, length, dtype, settings.cache_gb) if device == "cpu" else None
    room = max(external.max_adapters, len(adapters))
    ranks = [lora.rank for lora in adapters]
    return EngineSpec(
        model=base,
        name="base",
        family=config.get("model_type", ""),
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        quant=config.get("quantization_config"),
        is_multimodal="vision_config" in config,
        max_length=length,
        dtype=dtype,
        device=device,
        max_concurrent=settings.max_concurrent,
        load_as=external.load_as,
        tensor_parallel=external.tensor_parallel,
        cache_dtype=external.cache_dtype,
        cache_gb=memory or settings.cache_gb,
        memory_share=external.memory_share,
        threads=settings.threads,
        prefix_cache=external.prefix_cache,
        chunked_prefill=external.chunked_prefill,
        adapters=tuple(adapters),
        max_adapters=room,
        max_lora_rank=max(
            ranks + [external.max_adapter_rank] * bool(external.max_adapters), default=0
        ),
        tool_parser=external.tool_parser,
        reasoning_parser=external.reasoning_parser,
        speculative=external.speculative,
        extra=external.extra,
        has_our_code=_has_our_code(base, config),
    )


def _device(engine: External, settings: EngineSettings) -> Literal["cuda", "cpu"]:
    wanted = settings.device.partition(":")[0]
    if wanted == "auto":
        return "cpu" if "cpu" in engine.abilities.devices else "cuda"
    if wanted not in ("cuda", "cpu"):
        raise UserError(
            f"{engine.kind} was only tried on CUDA and CPUs, not on `{settings.device}`",
            hint="use `--engine transformers`",
        )
    return "cpu" if wanted == "cpu" else "cuda"


def _gpus(settings: EngineSettings) -> list[Gpu]:
    """The GPUs that may be chosen from."""
    _, _, index = settings.device.partition(":")
    if settings.device.startswith("cpu"):
        return []
    found = find_gpus()
    if not found:
        raise MachineError(
            f"{settings.engine} needs an NVIDIA GPU, and none may be used here",
            hint="use `--engine auto` or `--engine vllm-cpu`; `dialoop engine doctor` says more",
        )
    if not index:
        return found
    if int(index) >= len(found):
        raise MachineError(
            f"device `{settings.device}` is not among the {len(found)} GPUs that may be used",
            hint="run `dialoop doctor` to see what is here",
        )
    return [found[int(index)]]


def _dtype(engine: External, gpus: Sequence[Gpu]) -> Literal["bf16", "fp16", "fp32"]:
    if gpus:
        return "bf16" if all(gpu.capability >= 8 for gpu in gpus) else "fp16"
    supported = find("cpu").supports_bf16 or "fp32" not in engine.abilities.dtypes
    return "bf16" if supported else "fp32"


def _has_our_code(base: Path, config: Json) -> bool:
    """Whether every Python file of a checkpoint that asks for its own code is one of ours."""
    files = list(base.glob("*.py"))
    return "auto_map" in config and bool(files) and all(_is_ours(path) for path in files)


def _is_ours(path: Path) -> bool:
    ours = _CODE / path.name
    return ours.exists() and ours.read_bytes() == path.read_bytes()
