"""The quickstart, top to bottom: pull, read, tune, merge, evaluate, serve, ask."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoop import __version__
from dialoop.core import jobfile
from dialoop.core.events import Artifact, Note, Stage
from dialoop.core.files import lock_folder, sha256
from dialoop.data.run import inspect
from dialoop.data.spec import DataSpec, InspectJob
from dialoop.evaluate.result import EvaluateResult
from dialoop.evaluate.run import run as evaluate
from dialoop.evaluate.spec import EvaluateJob, Generation
from dialoop.evaluate.suite import load_suites, problems
from dialoop.evaluate.tasks.loss import Loss
from dialoop.evaluate.tasks.suite import Suite
from dialoop.models import checkpoint, sources
from dialoop.models.merge import run as merge
from dialoop.models.spec import MergeJob, MergeResult
from dialoop.quickstart import material
from dialoop.quickstart.ask import ask, client_name
from dialoop.quickstart.spec import Answer, QuickstartResult
from dialoop.quickstart.stages import Clock, Stages
from dialoop.serve.run import running
from dialoop.serve.spec import ServeJob
from dialoop.train.run import run as train
from dialoop.train.spec import Optim, Saving, TrainJob, TrainResult
from dialoop.train.tuners.lora import Lora

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.evaluate.suite import Question
    from dialoop.quickstart.material import Material
    from dialoop.quickstart.spec import QuickstartJob


def run(job: QuickstartJob, emit: Callable[[Event], None]) -> QuickstartResult:
    """Tune, measure, merge and serve; what an earlier run has done is not done again.

    Raises:
        UserError: a file, the model or the folder is wrong.
        MachineError: the machine lacks a package, space or a connection.
        UpstreamError: the registry or the server failed.
    """
    files = material.find(job)
    questions = load_suites([files.suite])
    with lock_folder(job.output, "quickstart"):
        stages = Stages(job.output, Clock(emit))
        base = stages.timed("model", lambda: sources.resolve(job.model, stages.clock))
        counts = stages.timed("read", lambda: _read(files, base, stages.clock))
        adapter = _tune(job, files, base, stages)
        merged = _merge(job, adapter, stages)
        report, measured = _evaluate(job, files, merged, stages)
        after = stages.timed("serve", lambda: _serve(job, merged, questions, stages.clock))
        stages.clock(Artifact("report", str(report / "report.html")))
        made = _Made(adapter, merged, report, measured)
        return _result(counts, made, after, questions, stages)


@dataclass(frozen=True, slots=True)
class _Made:
    """What stands in the output folder."""

    adapter: Path
    merged: Path
    report: Path
    measured: EvaluateResult


def _read(files: Material, base: Path, emit: Callable[[Event], None]) -> dict[str, int]:
    """Say what the data holds, and count it."""
    emit(Stage("read the dialogues"))
    counts = {}
    for name, path in (
        ("train_dialogues", files.dataset),
        ("held_out_dialogues", files.held_out),
    ):
        found = inspect(InspectJob(paths=[str(path)], model=str(base), samples=0), emit)
        for line in found.report.lines():
            emit(Note(f"{path.name}: {line}"))
        counts[name] = found.report.kept
    return counts


def _tune(job: QuickstartJob, files: Material, base: Path, stages: Stages) -> Path:
    def make(folder: Path) -> TrainResult:
        return train(_train_job(job, files, folder), stages.clock)

    settings = job.model_dump(include={"epochs", "rank", "lr", "max_length", "device"})
    inputs = {
        "base": checkpoint.fingerprint(base),
        "data": sha256(files.dataset),
        "version": __version__,
        **settings,
    }
    return stages.once("tuned", inputs, TrainResult, make)[0]


def _train_job(job: QuickstartJob, files: Material, folder: Path) -> TrainJob:
    return TrainJob(
        model=job.model,
        data=DataSpec(dataset=[str(files.dataset)]),
        output=folder,
        tuner=Lora(rank=job.rank),
        optim=Optim(lr=job.lr, warmup=0.05, min_lr_ratio=0.05),
        saving=Saving(keep=1, save_steps=25),  # about a minute is lost when interrupted
        max_length=job.max_length,
        accumulate=1,
        epochs=job.epochs,
        device=job.device,
        resume=(folder / "checkpoints").is_dir(),
    )


def _merge(job: QuickstartJob, adapter: Path, stages: Stages) -> Path:
    def make(folder: Path) -> MergeResult:
        return merge(MergeJob(model=str(adapter), output=folder, device=job.device), stages.clock)

    return stages.once("merged", {"adapter": adapter.name}, MergeResult, make)[0]


def _evaluate(
    job: QuickstartJob, files: Material, merged: Path, stages: Stages
) -> tuple[Path, EvaluateResult]:
    def make(folder: Path) -> EvaluateResult:
        asked = EvaluateJob(
            model=str(merged),
            compare=job.model,
            dataset=[str(files.held_out)],
            suite=[files.suite],
            tasks=[Loss(), Suite()],
            device=job.device,
            generation=Generation(max_new_tokens=job.max_new_tokens, batch_size=16),
            output=folder,
        )
        return evaluate(asked, stages.clock)

    inputs = {
        "model": merged.name,
        "held_out": sha256(files.held_out),
        "suite": sha256(files.suite),
        "max_new_tokens": job.max_new_tokens,
    }
    return stages.once("report", inputs, EvaluateResult, make)


def _serve(
    job: QuickstartJob,
    model: Path,
    questions: tuple[Question, ...],
    emit: Callable[[Event], None],
) -> list[str]:
    """Answers of the model over HTTP, from a server that lives as long as they take."""

    async def answers() -> list[str]:
        emit(Stage("serve the tuned model"))
        asked = {"model": str(model), "port": job.port, "device": job.device}
        served = jobfile.parse(ServeJob, asked)
        async with running(served, emit) as server:
            emit(Stage(f"ask {len(questions)} questions at {server.url}"))
            dialogues = [question.dialogue() for question in questions]
            return await ask(server.url, server.model, dialogues, job.max_new_tokens)

    return asyncio.run(answers())


def _result(
    counts: dict[str, int],
    made: _Made,
    after: list[str],
    questions: tuple[Question, ...],
    stages: Stages,
) -> QuickstartResult:
    before = made.measured.compare
    suite = before.task("suite") if before else None
    loss_before, loss_after = made.measured.compare_loss, made.measured.loss
    assert suite and loss_before is not None and loss_after is not None  # noqa: S101, PT018
    return QuickstartResult(
        loss_before=loss_before,
        loss_after=loss_after,
        seconds=round(stages.clock.work_s, 1),
        served=all(after),
        answers=[
            Answer(question=old.question, before=old.answer, after=new)
            for old, new in zip(suite.cases, after, strict=True)
        ],
        checks_before=made.measured.compare_checks_passed or 0,
        checks_after=sum(not problems(q, a) for q, a in zip(questions, after, strict=True)),
        **counts,
        reused=stages.reused,
        stage_seconds=stages.seconds,
        download_seconds=round(stages.clock.downloads_s, 1),
        client=client_name(),
        adapter=made.adapter,
        model=made.merged,
        report=made.report / "report.html",
    )
