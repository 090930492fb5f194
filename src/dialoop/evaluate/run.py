"""An evaluation, top to bottom: material, each checkpoint in turn, reports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dialoop.core import jobfile
from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Note, Stage
from dialoop.core.files import refuse_file, write_text
from dialoop.core.schema import family
from dialoop.data.load import load
from dialoop.data.spec import DataSpec, Reading
from dialoop.evaluate import past, report
from dialoop.evaluate.endpoint import RemoteSubject
from dialoop.evaluate.result import Checkpoint, EvaluateResult, compared
from dialoop.evaluate.subject import open_subject
from dialoop.evaluate.suite import load_suites
from dialoop.evaluate.tasks import Material, Task
from dialoop.models.sources import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.evaluate.result import PastRun
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
    history = past.history(job.history)
    if job.compare_endpoint and not job.compare:
        raise UserError(
            "compare_endpoint: an address without a model", hint="give its name with `--compare`"
        )
    compare_at = job.compare_endpoint if job.compare else None
    old = [past.checkpoint(job.model, job.endpoint)]
    old += [past.checkpoint(job.compare, compare_at)] if job.compare else []
    if all(old):  # everything was measured before
        tasks, material = list(job.tasks), Material(None, ())
    else:
        emit(Stage("read the held-out material"))
        material = _material(job, emit)
        tasks = _tasks(job, material)
    compare = None
    if job.compare:
        compare = old[1] or _measure(job.compare, compare_at, job, tasks, material, emit)
    model = old[0] or _measure(job.model, job.endpoint, job, tasks, material, emit)
    model = _confronted(model, compare, tasks)
    result = _result(model, compare, history)
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
    titles = [task.title for task in job.tasks]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise UserError(
            f"tasks: two are called `{twice}`", hint="give one of them a `name` of its own"
        )
    options = [o for o in family("dialoop.evaluate.tasks").values() if issubclass(o, Task)]
    known = [
        option(kind=option.model_fields["kind"].default)
        for option in options
        if option.runs_unasked
    ]
    tasks = job.tasks or [task for task in known if not task.lacks(material)]
    if not tasks:
        raise UserError(
            "nothing to measure: `dataset`, `suite` and `tasks` are empty",
            hint="give held-out dialogues with `--dataset FILE`, questions with `--suite FILE`, or "
            "other tasks with `--tasks`",
        )
    return tasks


def _measure(
    reference: str,
    url: str | None,
    job: EvaluateJob,
    tasks: list[Task],
    material: Material,
    emit: Callable[[Event], None],
) -> Checkpoint:
    """Load or reach one model, measure it, let it go."""
    emit(Stage(f"evaluate {reference}"))
    if url:
        subject = RemoteSubject(job.at(url, reference), job.generation, emit)
    else:
        subject = open_subject(resolve(reference, emit), job, emit)
    measured = tuple(task.measure(subject, material) for task in tasks)
    return Checkpoint(name=reference, tokenizer=subject.digest, measured=measured)


def _confronted(model: Checkpoint, compare: Checkpoint | None, tasks: list[Task]) -> Checkpoint:
    """The model's measurements with what the tasks find beside those of the other."""
    known = {task.title: task for task in tasks}
    parts = tuple(
        known[part.task].confront(part, compare.task(part.task) if compare else None)
        if part.task in known
        else part
        for part in model.measured
    )
    return model.model_copy(update={"measured": parts})


def _result(
    model: Checkpoint, compare: Checkpoint | None, history: tuple[PastRun, ...]
) -> EvaluateResult:
    notes, comparisons = [], compared(model, compare) if compare else ()
    if compare and compare.tokenizer != model.tokenizer and model.score("loss") is not None:
        notes.append(
            "the two checkpoints have different tokenizers: losses per token differ in kind"
        )
        comparisons = tuple(c for c in comparisons if c.score not in {"loss", "perplexity"})
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
        comparisons=comparisons,
        history=history,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
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
