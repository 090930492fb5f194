"""Prepare, read, round layer by layer, write, check, report: a quantization from top to bottom."""

from __future__ import annotations

import json
import shutil
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dialoop.chat.template import Template
from dialoop.core import device as devices
from dialoop.core import jobfile
from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Artifact, Note, Progress, Stage
from dialoop.core.files import lock_folder, refuse_file, write_text
from dialoop.models import checkpoint, heads, lineage, sources
from dialoop.models import merge as merging
from dialoop.models.families import write_remote_code
from dialoop.models.load import base_of, quantized_by, torch_dtype
from dialoop.models.spec import MergeJob
from dialoop.quantize import balance, choice, report
from dialoop.quantize.spec import QuantizeResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from dialoop.core.device import Device
    from dialoop.core.events import Event
    from dialoop.quantize.calibrate import Material
    from dialoop.quantize.check import Comparison
    from dialoop.quantize.files import Workshop
    from dialoop.quantize.source import Layer, Source
    from dialoop.quantize.spec import QuantizeJob
    from dialoop.quantize.storage import Stored

SHARE_OF_MEMORY = 0.25
"""What the states within a layer may take of the device."""
SHARE_OF_MEMORY_TO_READ = 0.8
"""What the weights that are read back may take of the device."""
ANSWER_TOKENS = 32


def run(job: QuantizeJob, emit: Callable[[Event], None]) -> QuantizeResult:
    """Write a quantized checkpoint, checked against its source, in `job.output`.

    Raises:
        UserError: the job, the data or the model is wrong, or the result is beyond its budget.
        MachineError: the machine lacks a device, a package, space or permission.
    """
    from dialoop.quantize.files import Workshop

    started = time.monotonic()
    _refuse_output(job.output)
    _refuse_lacking(job)
    emit(Stage("fetch the model"))
    model, adapter = _parts(job, emit)
    workshop = Workshop(job.output)
    with lock_folder(workshop.folder, "run"):
        workshop.begin(jobfile.dump(job.model_copy(update={"resume": False})), resume=job.resume)
        try:
            folder = _merged(model, adapter, workshop, job, emit)
            result = _make(job, folder, workshop, started, emit)
        except BaseException:
            workshop.abandon()
            raise
        if adapter and job.adapter_mode == "beside":
            _put_beside(adapter, job.output, workshop.export)
        write_text(workshop.export / "job.yaml", jobfile.dump(job))
        report.write(job, result, workshop.export)
        workshop.deliver()
    emit(Artifact("model", str(job.output)))
    emit(Artifact("report", str(job.output / "report.html")))
    if not result.verified:
        raise UserError(
            f"the held-out perplexity rose by {result.ppl_increase:.1%}, more than the"
            f" {job.max_ppl_increase:.1%} that max_ppl_increase allows; `{job.output}` is kept and"
            " marked as not verified",
            hint="use a smaller --method.group_size, --keep or --precisions for some layers, or"
            " another method",
        )
    return result


def _refuse_output(output: Path) -> None:
    refuse_file(output)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"`{output}` exists already", hint="give another folder with -o")


def _refuse_lacking(job: QuantizeJob) -> None:
    """Tell what reading the result back will need, before hours are spent on it."""
    for package in job.method.packages:
        if find_spec(package) is None:
            raise MachineError(
                f"checking a model quantized by {job.method.kind} needs the package"
                f" `{package.replace('_', '-')}`, which is not installed",
                hint=f"pip install 'dialoop[{job.method.extra}]'",
            )


def _parts(job: QuantizeJob, emit: Callable[[Event], None]) -> tuple[Path, Path | None]:
    """The whole model, and the adapter on it if there is one.

    Raises:
        UserError: two adapters, something else in an adapter's place, or a model that is quantized
            already or of a kind that cannot be.
    """
    folder = sources.resolve(job.model, emit)
    adapter = sources.resolve(job.adapter, emit) if job.adapter else None
    if adapter and not checkpoint.is_adapter(adapter):
        raise UserError(
            f"adapter: `{adapter}` holds no adapter",
            hint="give the folder that holds adapter_config.json",
        )
    if checkpoint.is_adapter(folder):
        if adapter:
            raise UserError(
                f"both `{folder}` and `{adapter}` are adapters",
                hint="give the base by --model and one adapter by --adapter",
            )
        folder, adapter = base_of(folder), folder
    checkpoint.check(folder)
    if method := quantized_by(folder):
        raise UserError(
            f"`{folder}` is quantized already, by `{method}`",
            hint="give the model that it was made from",
        )
    heads.refuse_other(folder, "tokens")
    family = checkpoint.read_json(folder / "config.json").get("model_type")
    if family not in balance.FAMILIES:
        raise UserError(
            f"a `{family}` cannot be quantized yet",
            hint=f"known families: {', '.join(sorted(balance.FAMILIES))}",
        )
    return folder, adapter


def _merged(
    model: Path,
    adapter: Path | None,
    workshop: Workshop,
    job: QuantizeJob,
    emit: Callable[[Event], None],
) -> Path:
    """What is rounded: the model, or a copy with the adapter in it."""
    if adapter is None or job.adapter_mode == "beside":
        return model
    folder = workshop.folder / "merged"
    if not folder.is_dir():
        merging.run(MergeJob(model=str(adapter), base=str(model), output=folder), emit)
    return folder


def _make(
    job: QuantizeJob,
    folder: Path,
    workshop: Workshop,
    started: float,
    emit: Callable[[Event], None],
) -> QuantizeResult:
    import torch

    from dialoop.quantize import calibrate, check, files
    from dialoop.quantize.source import Source

    device = devices.find(job.device)
    reader = _reader(files.num_bytes(folder), device, emit)
    dtype = torch_dtype(job.dtype, device)
    template = Template.from_folder(folder)
    emit(Stage("read and tokenise the data"))
    material = calibrate.gather(job, template, _part_tokens(folder, device, job), emit)
    place = torch.device(device.torch_name)
    source = Source(folder, dtype, place)
    shapes = source.linear_shapes
    bits = choice.choose(list(shapes), job.keep, job.precisions, job.method)
    kept = [name for name in shapes if name not in bits]
    job.method.refuse({name: shapes[name] for name in bits})
    needed = files.estimated_bytes(
        source, {name: job.method.bits_a_weight(number) for name, number in bits.items()}
    )
    files.refuse_full_disk(workshop.folder, needed)
    emit(Stage("round the weights"))
    reference = _layers(job, source, material, bits, workshop, emit)
    workshop.finish(folder, job.method.config(bits, ["lm_head", *kept]))
    _complete(folder, workshop.export, job)
    emit(Stage("check what was written"))
    source_head = source.head()
    source.close()
    model = check.reload(workshop.export, reader, job.dtype)
    ids = check.answer(model, material.prompt, template.stop_ids, ANSWER_TOKENS)
    answer = template.tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}").strip()
    found = check.compare(reference, source_head, model, material.held_out, emit)
    weights = {name: shapes[name][0] * shapes[name][1] for name in bits}
    mean = sum(job.method.bits_a_weight(bits[name]) * size for name, size in weights.items())
    return _result(
        job,
        found,
        has_answers=material.has_answers,
        num_layers=len(bits),
        num_kept=len(kept),
        source_bytes=files.num_bytes(folder),
        bytes=files.num_bytes(workshop.export),
        bits_a_weight=mean / sum(weights.values()),
        answer=answer,
        seconds=time.monotonic() - started,
        peak_bytes=devices.peak_bytes(place),
        readers=job.method.readers(tuple(sorted(set(bits.values())))),
    )


def _reader(whole_bytes: int, device: Device, emit: Callable[[Event], None]) -> Device:
    """Where the result is read back: transformers holds it whole, unlike the source.

    Raises:
        MachineError: there is no room for it anywhere.
    """
    for place in (device, devices.find("cpu")):
        if whole_bytes <= SHARE_OF_MEMORY_TO_READ * place.memory_bytes:
            if place.kind != device.kind:
                emit(Note(f"the result will be checked on the CPU: {device.name} cannot hold it"))
            return place
    raise MachineError(
        f"checking the result needs {whole_bytes / 2**30:.0f} GiB for the whole model, which"
        " neither the device nor this machine has",
        hint="quantize it on a machine with more memory",
    )


def _part_tokens(folder: Path, device: Device, job: QuantizeJob) -> int:
    """Calibration tokens whose states within a layer fit the device."""
    config = checkpoint.read_json(folder / "config.json")
    widths = 4 * config["intermediate_size"] + 8 * config["hidden_size"]
    room = SHARE_OF_MEMORY * device.memory_bytes
    return max(job.max_length, min(job.num_tokens, int(room / (4 * widths))))


def _layers(
    job: QuantizeJob,
    source: Source,
    material: Material,
    bits: dict[str, int],
    workshop: Workshop,
    emit: Callable[[Event], None],
) -> list[Tensor]:
    """Round and write every layer; returns the source's own last states of the held-out rows."""
    from dialoop.quantize.source import passes

    states = {
        "calibration": source.begin(material.calibration),
        "held_out": source.begin(material.held_out),
    }
    done = workshop.num_done()
    if done:
        emit(Note(f"{done} of {len(source)} layers are there already"))
        workshop.read_states(done, states)
    for number in range(done, len(source)):
        emit(Progress("quantize", number, len(source), "layers"))
        layer = source.layer(number)
        passes(layer, states["held_out"])
        own = {
            name: bits[layer.prefix + name] for name in layer.linears if layer.prefix + name in bits
        }
        stored = job.method.quantize(layer, states["calibration"], own)
        workshop.write_layer(number, _written(source, layer, stored))
        workshop.write_states(number + 1, states)
    emit(Progress("quantize", len(source), len(source), "layers"))
    workshop.write_rest({name: source.read(name) for name in source.names_outside()})
    return [source.finish(part.states) for part in states["held_out"]]


def _written(source: Source, layer: Layer, stored: dict[str, Stored]) -> dict[str, Tensor]:
    """Every tensor of a layer as it is written: rounded, changed beside, or as it was."""
    rounded = {f"{layer.prefix}{name}.weight" for name in stored}
    tensors = {
        name: layer.stored(name.removeprefix(layer.prefix), source.read(name))
        for name in source.names_in(layer.number)
        if name not in rounded
    }
    for name, each in stored.items():
        tensors |= {f"{layer.prefix}{name}.{key}": value for key, value in each.tensors.items()}
    return tensors


def _complete(source: Path, export: Path, job: QuantizeJob) -> None:
    """Put beside the weights what else a checkpoint needs."""
    merging.copy_companions(export, source)
    write_remote_code(export, checkpoint.read_json(export / "config.json")["model_type"])
    facts = job.method.model_dump(mode="json")
    lineage.record(export, base=source, made_by="quantize", method=facts, dataset=job.dataset)


def _put_beside(adapter: Path, output: Path, export: Path) -> None:
    """Copy the adapter to `adapter` in the checkpoint, with that as its base."""
    folder = export / "adapter"
    shutil.copytree(adapter, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("check*"))
    config = checkpoint.read_json(folder / checkpoint.ADAPTER)
    config["base_model_name_or_path"] = str(output.absolute())
    write_text(folder / checkpoint.ADAPTER, json.dumps(config, indent=2) + "\n")
    lineage.record(folder, base=export, made_by="quantize", adapter=str(adapter))


def _result(
    job: QuantizeJob, found: Comparison, *, has_answers: bool, **facts: Any
) -> QuantizeResult:
    increase = found.perplexity / found.source_perplexity - 1
    allowed = job.max_ppl_increase
    return QuantizeResult(
        path=job.output,
        method=_method_text(job),
        perplexity=found.perplexity if has_answers else None,
        source_perplexity=found.source_perplexity if has_answers else None,
        ppl_increase=increase if has_answers else None,
        agreement=found.agreement,
        kl=found.kl,
        num_measured=found.num_tokens,
        verified=allowed is None or increase <= allowed,
        **facts,
    )


def _method_text(job: QuantizeJob) -> str:
    """`gptq, group_size 64`."""
    settings = job.method.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
    return ", ".join([job.method.kind, *(f"{name} {value}" for name, value in settings.items())])
