"""An evaluation, top to bottom: material, each checkpoint in turn, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.core import jobfile
from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Note, Stage
from dialoop.core.files import refuse_file, write_text
from dialoop.core.schema import family
from dialoop.data.load import load
from dialoop.data.spec import DataSpec, Reading
from dialoop.evaluate import report
from dialoop.evaluate.result import Checkpoint, EvaluateResult
from dialoop.evaluate.subject import open_subject
from dialoop.evaluate.suite import load_suites
from dialoop.evaluate.tasks import Material, Task
from dialoop.models.sources import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.evaluate.spec import EvaluateJob


def run(job: EvaluateJob, emit: Callable[[Event], None]) -> EvaluateResult:
    """Measure the checkpoints and write the reports.

    Raises:
        UserError: there is nothing to measure, a checkpoint or file is wrong, or the output is a
            file.
        MachineError: the device is not here, or the output folder may not be written.
    """
    if job.output:
        refuse_file(job.output)
    emit(Stage("read the held-out material"))
    material = _material(job, emit)
    tasks = _tasks(job, material)
    compare = _measure(job.compare, job, tasks, material, emit) if job.compare else None
    model = _measure(job.model, job, tasks, material, emit)
    result = _result(model, compare)
    for note in result.notes:
        emit(Note(note, level="warning"))
    return _write(result, job, job.output, emit) if job.output else result


def _material(job: EvaluateJob, emit: Callable[[Event], None]) -> Material:
    samples = None
    if job.dataset:
        reading = {name: getattr(job, name) for name in Reading.model_fields}
        samples = load(DataSpec(dataset=job.dataset, **reading), emit).train
    return Material(samples, load_suites(job.suite))


def _tasks(job: EvaluateJob, material: Material) -> list[Task]:
    """The tasks asked for, or all that have their material.

    Raises:
        UserError: a task asked for lacks its material, or none has any.
    """
    for task in job.tasks:
        if field := task.lacks(material):
            raise UserError(
                f"task `{task.kind}` needs `{field}`, which is empty", hint=f"give `--{field} FILE`"
            )
    known = [option(kind=kind) for kind, option in family("dialoop.evaluate.tasks").items()]
    fitting = [t for t in known if isinstance(t, Task) and not t.lacks(material)]
    tasks = job.tasks or fitting
    if not tasks:
        raise UserError(
            "nothing to measure: both `dataset` and `suite` are empty",
            hint="give held-out dialogues with `--dataset FILE` or questions with `--suite FILE`",
        )
    return tasks


def _measure(
    reference: str,
    job: EvaluateJob,
    tasks: list[Task],
    material: Material,
    emit: Callable[[Event], None],
) -> Checkpoint:
    """Load one checkpoint, measure it, let it go."""
    emit(Stage(f"evaluate {reference}"))
    subject = open_subject(resolve(reference, emit), job, emit)
    measured = tuple(task.measure(subject, material) for task in tasks)
    return Checkpoint(
        name=reference, tokenizer=subject.template.tokenizer.digest, measured=measured
    )


def _result(model: Checkpoint, compare: Checkpoint | None) -> EvaluateResult:
    notes = []
    if compare and compare.tokenizer != model.tokenizer:
        notes.append(
            "the two checkpoints have different tokenizers: losses per token differ in kind"
        )
    return EvaluateResult(
        loss=model.score("loss"),
        perplexity=model.score("perplexity"),
        checks_passed=_count(model, "checks passed"),
        checks_total=_count(model, "checks"),
        compare_loss=compare.score("loss") if compare else None,
        compare_perplexity=compare.score("perplexity") if compare else None,
        compare_checks_passed=_count(compare, "checks passed") if compare else None,
        model=model,
        compare=compare,
        notes=tuple(notes),
    )


def _count(checkpoint: Checkpoint, name: str) -> int | None:
    value = checkpoint.score(name)
    return None if value is None else int(value)


def _write(
    result: EvaluateResult, job: EvaluateJob, folder: Path, emit: Callable[[Event], None]
) -> EvaluateResult:
    done = result.model_copy(update={"report": str(folder / "report.html")})
    write_text(folder / "job.yaml", jobfile.dump(job))
    write_text(folder / "report.json", done.model_dump_json(indent=2) + "\n")
    write_text(folder / "report.md", report.markdown(done))
    write_text(folder / "report.html", report.html(done))
    emit(Artifact("report", str(folder / "report.html")))
    return done
