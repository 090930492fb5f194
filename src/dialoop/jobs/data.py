"""The data verbs for models of any name: found, or fetched, before the data is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from dialoop.data import run
from dialoop.models.load import text_folder
from dialoop.models.sources import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event
    from dialoop.data.run import ConvertResult, InspectResult
    from dialoop.data.spec import ConvertJob, InspectJob

J = TypeVar("J", "ConvertJob", "InspectJob")


def convert(job: ConvertJob, emit: Callable[[Event], None]) -> ConvertResult:
    """`data.run.convert`, with the model by any name that `dialoop models pull` takes."""
    return run.convert(_with_folder(job, emit), emit)


def inspect(job: InspectJob, emit: Callable[[Event], None]) -> InspectResult:
    """`data.run.inspect`, with the model by any name that `dialoop models pull` takes."""
    return run.inspect(_with_folder(job, emit), emit)


def _with_folder(job: J, emit: Callable[[Event], None]) -> J:
    if job.model is None:
        return job
    folder = text_folder(resolve(job.model, emit))
    return job.model_copy(update={"model": str(folder)})
