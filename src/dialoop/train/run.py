"""Load, tokenise, prepare, fit, save, report: a training job read from top to bottom."""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import TYPE_CHECKING

from dialoop.chat.template import Template
from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core import device as devices
from dialoop.core import env, jobfile
from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, JsonLinesSink, Note, Stage, ignore, join
from dialoop.core.files import lock_folder, machine_errors, write_text
from dialoop.data import load as data_load
from dialoop.data.tokenize import tokenize
from dialoop.models import lineage, rope, sources
from dialoop.models.checkpoint import fingerprint, is_adapter
from dialoop.models.facts import facts_of
from dialoop.models.families import write_remote_code
from dialoop.models.new_tokens import copy_texts
from dialoop.train.adapter import Adapter
from dialoop.train.plan import choose_mode
from dialoop.train.spec import TrainJob, TrainResult
from dialoop.train.tensorboard import TensorBoardSink

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from dialoop.core.device import Device
    from dialoop.core.events import Event
    from dialoop.data.load import Loaded
    from dialoop.data.samples import SampleSet
    from dialoop.data.tokenize import TokenRows
    from dialoop.data.units import Unit
    from dialoop.models.spec import Dtype
    from dialoop.train.checkpoint import Position
    from dialoop.train.loop import Loop
    from dialoop.train.online import Online
    from dialoop.train.parallel.team import Team
    from dialoop.train.reference import References
    from dialoop.train.rollout import Rollout
    from dialoop.train.training_set import TrainingSet
    from dialoop.train.view import View

FEW_STEPS = 20
"""Fewer optimiser steps than this are told: on little data the defaults may give one an epoch."""


def run(job: TrainJob, emit: Callable[[Event], None]) -> TrainResult:
    """Tune a model and save what came of it in `job.output`.

    Raises:
        UserError: the job, the data or a checkpoint is wrong.
        MachineError: the machine lacks a device, space or permission.
    """
    if job.gpus * job.nodes > 1 and env.world_size() == 1:
        from dialoop.train.parallel import launch

        return launch.launch(job, emit)
    job = _as_started(job)
    from dialoop.train.parallel import meeting

    device = _device(job)
    _set_threads(job)
    with meeting.gathered(job, device):
        return _lead(job, emit, device) if env.rank() == 0 else _train(job, ignore, device)


def _as_started(job: TrainJob) -> TrainJob:
    """The job with the number of processes that another launcher started, checked anew."""
    asked, size = job.gpus * job.nodes, env.world_size()
    if asked == size:
        return job
    if asked != 1:
        raise UserError(
            f"the job asks for {asked} processes by gpus and nodes, and {size} were started",
            hint="leave both out where another launcher starts the processes",
        )
    return jobfile.parse(TrainJob, jobfile.read_yaml(jobfile.dump(job)) | {"gpus": size})


def _lead(job: TrainJob, emit: Callable[[Event], None], device: Device) -> TrainResult:
    """Train, and write down what all ranks do."""
    with lock_folder(job.output, "run"):
        _begin(job)
        write_text(job.output / "job.yaml", jobfile.dump(job))
        log = JsonLinesSink(job.output / "events.jsonl")
        curves = TensorBoardSink(job.output / "tensorboard")
        try:
            return _train(job, join(emit, log, curves), device)
        finally:
            log.close()
            curves.close()


def _device(job: TrainJob) -> Device:
    """This rank's device: as asked, or the one of its number where there are several ranks."""
    wanted = devices.by_number(job.device)
    found = devices.find(wanted)
    if env.world_size() == 1 or found.kind == "cpu":
        return found
    if ":" in wanted:
        raise UserError(
            f"device `{job.device}` is one, and {env.world_size()} processes need one each",
            hint="leave the number out; CUDA_VISIBLE_DEVICES chooses among them",
        )
    return devices.find(f"{found.kind}:{env.local_rank()}")


def _train(job: TrainJob, emit: Callable[[Event], None], device: Device) -> TrainResult:
    import torch

    from dialoop.train import report
    from dialoop.train.activations import recompute
    from dialoop.train.compiled import compile_layers
    from dialoop.train.loop import Loop
    from dialoop.train.online import Online
    from dialoop.train.parallel import fsdp
    from dialoop.train.parallel.meeting import lay_out, leader_first
    from dialoop.train.tiles import tile_mlps
    from dialoop.train.view import View

    dtype = job.dtype if job.dtype != "auto" else "bf16" if device.supports_bf16 else "fp32"
    emit(Stage("fetch the model"))
    with leader_first():
        folder = sources.resolve(job.model, emit)
    emit(Stage("read and tokenise the data"))
    with leader_first():
        texts = job.tuner.text_folder(folder, job.output)
    template = Template.from_folder(texts)
    job.objective.check(template)
    with leader_first():
        loaded = data_load.load(
            job.data,
            emit,
            count_tokens=lambda text: len(template.tokenizer.encode(text)),
            tokenizer_digest=template.tokenizer.digest,
        )
        objective = job.objective.settled(loaded.train, folder)
        job = job.model_copy(update={"objective": objective})
        rows = _rows(job, loaded.train, template, emit)
        held_out = _rows(job, loaded.validation, template, emit) if len(loaded.validation) else None
    if env.rank() == 0:
        shutil.copyfile(loaded.rejected, job.output / "rejected.jsonl")
    emit(Stage("train"))
    memory_mode = choose_mode(job, facts_of(str(folder)), device, dtype)
    emit(Note(f"activations: {memory_mode}"))
    model = _prepare(job, folder, device, dtype, template)
    if job.mlp_tile:
        tile_mlps(model, job.mlp_tile, compiled=job.compile)
    recompute(model, memory_mode, device.kind)
    if job.compile:
        compile_layers(model)
    autocast = _autocast(job, dtype)
    start = f"{fingerprint(folder)} {autocast} {next(model.parameters()).dtype}"
    team = lay_out(job, model.config, device)
    root = None
    if team.mesh is not None and job.shards:
        place = torch.device(device.torch_name)
        frees = job.parallel != "zero2"
        root = fsdp.shard(
            model,
            team.mesh,
            place,
            autocast,
            frees=frees,
            offload=job.offload,
            spread=_is_spread(job, folder),
        )
    companion = _companion(job, template, device, dtype, emit)
    view = View(model, team.rows, root, None if companion is None else View(companion))
    training = _with_references(job, rows, loaded.train, view, team, start, autocast, emit)
    validation = None
    if held_out is not None:
        validation = _with_references(
            job, held_out, loaded.validation, view, team, start, autocast, emit
        )
    rollout = None
    if isinstance(job.objective, Online) and job.objective.is_online:
        rollout = _rollout(job, job.objective, view, team, folder, template, dtype)
    loop = Loop(job, view, training, validation, autocast, emit, team, rollout)
    if job.resume and not loop.resume():
        emit(Note(f"no checkpoint in `{job.output}` yet: starting from the beginning"))
    if loop.num_steps < FEW_STEPS:
        emit(Note(
            f"the whole run is {loop.num_steps} optimiser steps, which teach little: lower"
            " --accumulate or --max_length, or raise --epochs",
            "warning",
        ))  # fmt: skip
    started = time.monotonic()
    at = loop.fit()
    emit(Stage("save the result"))
    fsdp.collect(model, keep=team.is_leader)
    result = _result(job, loop, at, time.monotonic() - started)
    if team.is_leader:
        _save(job, model, folder, texts, dtype, loaded, template)
        report.write(job, result)
    emit(Artifact("model", str(job.output)))
    emit(Artifact("report", str(result.report)))
    return result


def _begin(job: TrainJob) -> None:
    """Refuse a folder that holds something trained; clear what a run left that never got there."""
    if job.resume:
        return
    if (job.output / "report.html").exists() or any((job.output / "checkpoints").glob("step-*")):
        raise UserError(
            f"`{job.output}` holds an earlier run",
            hint="go on with it by --resume, or choose another --output",
        )
    for name in ("events.jsonl", "samples.jsonl"):
        (job.output / name).unlink(missing_ok=True)
    shutil.rmtree(job.output / "tensorboard", ignore_errors=True)


def _set_threads(job: TrainJob) -> None:
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)
    elif env.local_world_size() > 1:
        torch.set_num_threads(max(1, env.num_cpus() // env.local_world_size()))


def _rows(
    job: TrainJob, samples: SampleSet, template: Template, emit: Callable[[Event], None]
) -> TokenRows:
    return tokenize(
        samples,
        template,
        max_length=job.max_length,
        overlong=job.overlong,
        workers=job.workers or env.num_cpus(),
        cache=env.home() / "tokens",
        emit=emit,
        digest=samples.digest,
        encode=job.objective.encode,
        encoding=job.objective.encoding,
    )


def _with_references(
    job: TrainJob,
    rows: TokenRows,
    samples: SampleSet,
    view: View,
    team: Team,
    start: str,
    autocast: torch.dtype | None,
    emit: Callable[[Event], None],
) -> TrainingSet:
    """The units with what goes with them: their samples, or what the model gives at its start."""
    from dialoop.train.reference import precompute
    from dialoop.train.rollout import UnitSamples
    from dialoop.train.training_set import TrainingSet

    units, objective = TrainingSet(rows), job.objective
    if objective.is_online:
        return TrainingSet(rows, samples=UnitSamples(samples, rows))
    if not objective.needs_reference or job.reference == "live":
        return units

    def measured(name: str, unit: Callable[[int], Unit]) -> References:
        return precompute(
            view,
            objective,
            unit,
            len(units),
            capacity=job.batch_size * job.max_length,
            autocast=autocast,
            cache=env.home() / "references",
            key=f"{start} {job.tuner.start} {rows.digest} {name}",
            emit=emit,
            team=team,
        )

    own = measured("units", units.__getitem__)
    surveyed = None
    if objective.surveys:
        surveyed = measured("survey", partial(objective.survey_unit, units))
    return TrainingSet(rows, own, surveyed)


def _prepare(
    job: TrainJob, folder: Path, device: Device, dtype: Dtype, template: Template
) -> PreTrainedModel:
    import torch

    from dialoop.models import heads
    from dialoop.models.load import load_model, quantized_by
    from dialoop.train.packed import repack
    from dialoop.train.view import use_packed_attention

    if (method := quantized_by(folder)) and not job.tuner.takes_quantized:
        raise UserError(
            f"`{folder}` is quantized by `{method}`, and {job.tuner.kind} needs the weights in"
            " full",
            hint="use --tuner qlora, or the model that it was made from",
        )

    torch.manual_seed(job.seed)
    head = job.objective.head
    is_spread = _is_spread(job, folder)
    model = load_model(
        folder,
        device=devices.find("cpu") if is_spread else device,
        weightless=is_spread and env.rank() != 0,
        dtype=dtype,
        quantization=job.tuner.quantization,
        head=head,
        num_scores=job.objective.num_scores if head == "score" else None,
    )
    repack(model)
    heads.refuse_untrainable(model)
    heads.set_padding(model, template)
    if job.rope_factor is not None:
        rope.scale(model, job.rope_scaling, job.rope_factor)
    limit = rope.longest(model) - heads.first_position(model)
    if job.max_length > limit:
        raise UserError(
            f"max_length {job.max_length} is above the model's {limit} positions",
            hint=f"use --max_length {limit} or less, or --rope_scaling",
        )
    use_packed_attention(model)
    job.objective.prepare(model, job.seed)
    job.tuner.prepare(model, job.seed)
    return model


def _is_spread(job: TrainJob, folder: Path) -> bool:
    """Whether rank 0 loads the model into the host's memory, and the others get their shards."""
    from dialoop.models.load import quantized_by

    if job.tuner.quantization or quantized_by(folder):  # packed on the device, by each rank
        return False
    if job.tuner.reads_weights:
        return False
    return job.shards and (env.world_size() > 1 or job.offload)


def _companion(
    job: TrainJob,
    template: Template,
    device: Device,
    dtype: Dtype,
    emit: Callable[[Event], None],
) -> PreTrainedModel | None:
    """The frozen model that the objective asks beside the policy, with the same vocabulary."""
    from dialoop.models.load import load_model, text_folder
    from dialoop.train.packed import repack
    from dialoop.train.teacher import check_vocabulary
    from dialoop.train.view import use_packed_attention

    wanted = job.objective.companion(job.model, has_adapter=isinstance(job.tuner, Adapter))
    if wanted is None:
        return None
    folder = sources.resolve(wanted.model, emit)
    check_vocabulary(template.tokenizer, load_tokenizer(text_folder(folder)), wanted.model)
    model = load_model(folder, device=device, dtype=dtype, quantization=wanted.quantization)
    repack(model)
    if wanted.model == job.model and job.rope_factor is not None:
        rope.scale(model, job.rope_scaling, job.rope_factor)
    use_packed_attention(model)
    return model.requires_grad_(requires_grad=False)


def _rollout(
    job: TrainJob,
    objective: Online,
    view: View,
    team: Team,
    folder: Path,
    template: Template,
    dtype: Dtype,
) -> Rollout:
    from dialoop.train.rollout import Rollout
    from dialoop.train.rollouts import Policy

    model, stops = view.model, template.stop_ids
    if (longest := job.max_length + objective.rollout.max_new_tokens) > (
        limit := rope.longest(model)
    ):
        raise UserError(
            f"max_length with max_new_tokens is {longest}, above the model's {limit} positions",
            hint="lower --max_length, which bounds the prompts, or max_new_tokens",
        )
    autocast = _autocast(job, dtype)
    policy = Policy(model, stops, job.tuner, folder, dtype, autocast, longest, view.root)
    beside = None
    if view.companion is not None:
        other = view.companion.model
        beside = Policy(other, stops, job.tuner, folder, dtype, None, longest)
    return Rollout(
        objective,
        policy,
        beside,
        view,
        team,
        template,
        seed=job.seed,
        capacity=job.batch_size * job.max_length,
        output=job.output,
    )


def _autocast(job: TrainJob, dtype: str) -> torch.dtype | None:
    """The compute type, where weights that are wider do the computing."""
    import torch

    return torch.bfloat16 if dtype == "bf16" and job.tuner.autocasts else None


def _save(
    job: TrainJob,
    model: PreTrainedModel,
    base: Path,
    texts: Path,
    dtype: str,
    data: Loaded,
    template: Template,
) -> None:
    from dialoop.models import heads

    with machine_errors(job.output, "saving"):
        job.tuner.save(model, job.output, str(base.resolve()), dtype)
        if job.rope_scaling != "none" and is_adapter(job.output):
            rope.save(model, job.output)
        if texts != job.output:
            copy_texts(texts, job.output)
        if job.tuner.saves_model:
            write_remote_code(job.output, model.config.model_type)
        if job.objective.head == "score" and not heads.is_bidirectional(model):
            heads.write_padding(job.output, template)
        job.objective.describe(model, job.output, job.max_length)
    facts = {"train": data.train.digest, "validation": data.validation.digest}
    lineage.record(job.output, base=base, made_by=job.objective.kind, data=facts)


def _result(job: TrainJob, loop: Loop, at: Position, seconds: float) -> TrainResult:
    last = loop.losses[-loop.steps_per_epoch :]
    return TrainResult(
        output=job.output,
        steps=at.step,
        epochs=round(at.step / loop.steps_per_epoch, 3),
        tokens=at.tokens,
        seconds=round(seconds, 2),
        tokens_per_s=round(at.tokens / at.seconds, 1) if at.seconds else 0.0,
        train_loss=sum(last) / len(last) if last else float("nan"),
        validation_loss=at.best_loss,
        validation_before=at.first_loss,
        best_step=at.best_step,
        peak_memory_bytes=devices.peak_bytes(loop.device),
        report=job.output / "report.html",
    )
