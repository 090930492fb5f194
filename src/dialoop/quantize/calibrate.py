"""Calibrate: the dialogues to choose roundings on and those to measure on, as packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dialoop.chat.message import message
from dialoop.core import env
from dialoop.core.errors import UserError
from dialoop.core.events import Note
from dialoop.data.load import load
from dialoop.data.spec import DataSpec, Reading
from dialoop.data.tokenize import tokenize
from dialoop.models.merge import PROMPTS
from dialoop.quantize.rows import PackedRow, choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.chat.template import Template
    from dialoop.core.events import Event
    from dialoop.data.samples import SampleSet
    from dialoop.data.tokenize import TokenRows
    from dialoop.quantize.spec import QuantizeJob


@dataclass(frozen=True, slots=True)
class Material:
    """What a run reads."""

    calibration: list[PackedRow]
    """Empty for methods that look at no data."""
    held_out: list[PackedRow]
    has_answers: bool
    """Whether the held-out rows are dialogues of the user's; else they are a few prompts."""
    prompt: list[int]
    """Ids of a held-out prompt."""


def gather(
    job: QuantizeJob, template: Template, part_tokens: int, emit: Callable[[Event], None]
) -> Material:
    """Read, render, draw and pack.

    Args:
        job: names the data.
        template: of the model.
        part_tokens: calibration tokens that are computed at once.
        emit: receives progress.

    Raises:
        UserError: data is needed and none is given, or none of it is usable.
    """
    needs = job.method.needs_data
    if not job.dataset:
        _refuse_without_data(job)
        emit(Note("no --dataset: the result is compared on a few prompts, without a perplexity"))
        return _prompts(template)
    reading = {name: getattr(job, name) for name in Reading.model_fields}
    spec = DataSpec(dataset=job.dataset, validation=job.validation, seed=job.seed, **reading)
    loaded = load(spec, emit)
    if not needs:
        emit(Note(f"{job.method.kind} looks at no data: the dialogues only measure the result"))
    calibration = []
    if needs:
        rows = _rows(job, loaded.train, template, emit)
        calibration = choose(rows, job.num_tokens, part_tokens, job.seed)
    if not len(loaded.validation):
        if job.max_ppl_increase is not None:
            raise UserError(
                "max_ppl_increase: nothing is held out to measure the perplexity on",
                hint="give --validation 0.1, or a data set of its own",
            )
        plain = _prompts(template)
        return Material(calibration, plain.held_out, has_answers=False, prompt=plain.prompt)
    held_out = _rows(job, loaded.validation, template, emit)
    chosen = choose(held_out, job.check_tokens, job.max_length, job.seed)
    return Material(calibration, chosen, has_answers=True, prompt=_prompt(chosen[0]))


def _refuse_without_data(job: QuantizeJob) -> None:
    if job.method.needs_data:
        raise UserError(
            f"{job.method.kind} chooses its roundings on dialogues, and none are given",
            hint="give --dataset FILE, best the dialogues that the model was tuned on; fp8,"
            " int8_weight and nf4 need none",
        )
    if job.max_ppl_increase is not None:
        raise UserError(
            "max_ppl_increase: there are no dialogues to measure the perplexity on",
            hint="give --dataset FILE",
        )


def _rows(
    job: QuantizeJob, samples: SampleSet, template: Template, emit: Callable[[Event], None]
) -> TokenRows:
    return tokenize(
        samples,
        template,
        max_length=job.max_length,
        overlong="truncate",
        workers=env.num_cpus(),
        cache=env.home() / "tokens",
        emit=emit,
        digest=samples.digest,
    )


def _prompt(row: PackedRow) -> list[int]:
    """The first document up to its first answer."""
    return row.ids[: int(row.labelled[0])].tolist()


def _prompts(template: Template) -> Material:
    ids = [template.prompt_ids([message("user", text)]) for text in PROMPTS]
    bounds = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    weights = np.ones(int(bounds[-1]), np.float32)
    weights[bounds[:-1]] = 0
    row = PackedRow(np.concatenate(ids).astype(np.int64), tuple(map(int, bounds)), weights)
    return Material([], [row], has_answers=False, prompt=ids[0])
