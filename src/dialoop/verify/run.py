"""A verification, top to bottom: the first form answers, every other one is held against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.core import jobfile
from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Note, Progress, Stage
from dialoop.core.files import refuse_file, write_text
from dialoop.models.sources import resolve
from dialoop.train.endpoint import Endpoint
from dialoop.verify import material
from dialoop.verify.folder import Folder, is_quantized, kind_of
from dialoop.verify.result import Form, Sent, VerifyResult, markdown
from dialoop.verify.served import Served

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event
    from dialoop.verify.folder import Answered
    from dialoop.verify.spec import VerifyJob


def run(job: VerifyJob, emit: Callable[[Event], None]) -> VerifyResult:
    """Ask every form the same dialogues and compare.

    Raises:
        UserError: a form sends other ids, or differs by more than it may.
        MachineError: the device or a package is not here.
        UpstreamError: an endpoint does not answer.
    """
    if job.output:
        refuse_file(job.output)
    if len(job.models) + len(job.served) < 2:
        raise UserError(
            "models: one form has nothing to be held against",
            hint="give a second folder, or an endpoint as `--served NAME=URL`",
        )
    dialogues = material.load(job.dialogues)
    reference, *others = job.models
    emit(Stage(f"answer as {reference}"))
    first = Folder.open(reference, resolve(reference, emit), job)
    answered: list[Answered] = []
    for n, dialogue in enumerate(dialogues):
        emit(Progress("answer", n, len(dialogues), "dialogues"))
        answered.append(first.answer(dialogue))
    template, kind = first.template, kind_of(resolve(reference, emit))
    sent = tuple(_sent(first, item) for item in answered)
    del first  # its memory is needed
    forms = [_folder(name, job, answered, emit) for name in others]
    for name, url in job.served.items():
        endpoint = Endpoint(url=url, model=name, key_variable=job.key_variable)
        served = Served(endpoint, template, job.max_new_tokens)
        emit(Stage(f"ask {served.name}"))
        found = tuple(served.compare(item, reference) for item in answered)
        forms.append(
            Form(name=served.name, kind="served", bound_nats=job.max_nats, dialogues=found)
        )
    result = VerifyResult(
        reference=reference,
        reference_kind=kind,
        sent=sent,
        forms=tuple(forms),
        agrees=all(form.agrees for form in forms),
    )
    return _finished(result, job, emit)


def _sent(first: Folder, item: Answered) -> Sent:
    return Sent(
        dialogue=item.dialogue.name,
        prompt_ids=tuple(item.prompt_ids),
        prompt=first.template.tokenizer.decode(item.prompt_ids, skip_special=False),
        answer_ids=tuple(item.answer_ids),
        answer=item.text,
    )


def _folder(
    name: str, job: VerifyJob, answered: list[Answered], emit: Callable[[Event], None]
) -> Form:
    emit(Stage(f"ask {name}"))
    path = resolve(name, emit)
    form = Folder.open(name, path, job)
    is_rounded = is_quantized(path)
    return Form(
        name=name,
        kind=kind_of(path),
        bound_nats=job.max_nats_quantized if is_rounded else job.max_nats,
        is_quantized=is_rounded,
        dialogues=tuple(form.compare(item, job.models[0]) for item in answered),
    )


def _finished(result: VerifyResult, job: VerifyJob, emit: Callable[[Event], None]) -> VerifyResult:
    for form in result.forms:
        for item in form.dialogues:
            if item.refused:
                emit(Note(f"{form.name}: `{item.dialogue}` not asked: {item.refused}", "warning"))
        if form.worst_nats is None:
            emit(Note(f"{form.name} tells no log-probabilities: only answers compared", "warning"))
    if job.output:
        result = result.model_copy(update={"report": str(job.output / "verify.md")})
        write_text(job.output / "job.yaml", jobfile.dump(job))
        write_text(job.output / "verify.json", result.model_dump_json(indent=2) + "\n")
        write_text(job.output / "verify.md", markdown(result))
        emit(Artifact("report", str(job.output / "verify.md")))
    bad = next((form for form in result.forms if not form.agrees), None)
    if bad:
        where, flag = (
            ("a token on average", "--max_nats_quantized")
            if bad.is_quantized
            else ("at a first token", "--max_nats")
        )
        raise UserError(
            f"`{bad.name}` differs from `{result.reference}` by {bad.nats:.3f} nats {where}, and "
            f"{bad.bound_nats:g} are allowed",
            hint=f"see the report of `--output`; export once more, or allow more by `{flag}`",
        )
    silent = next((f for f in result.forms if all(d.refused for d in f.dialogues)), None)
    if silent:
        raise UserError(f"`{silent.name}` refuses every dialogue: {silent.dialogues[0].refused}")
    return result
