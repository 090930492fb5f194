"""How models are pulled, listed and shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from dialoop.models import catalog, sources
from dialoop.models.facts import facts_of
from dialoop.models.spec import (
    ListedModel,
    ListResult,
    PullResult,
    ShowResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event
    from dialoop.models.spec import ListJob, PullJob, ShowJob


def pull(job: PullJob, emit: Callable[[Event], None]) -> PullResult:
    """Bring a model onto this machine."""
    return PullResult(name=job.name, path=sources.resolve(job.name, emit))


def list_models(job: ListJob, emit: Callable[[Event], None]) -> ListResult:
    """Every model with a short name, and whether it is here."""
    del job, emit
    return ListResult(models=tuple(_listed(known) for known in catalog.MODELS))


def show(job: ShowJob, emit: Callable[[Event], None]) -> ShowResult:
    """A model's facts, here or not."""
    del emit
    known = catalog.find(job.name)
    return ShowResult(
        name=job.name,
        path=sources.cached(job.name),
        huggingface=known.huggingface if known else "",
        modelscope=known.modelscope if known else "",
        licence=known.licence if known else "",
        **asdict(facts_of(job.name)),
    )


def _listed(known: catalog.Known) -> ListedModel:
    return ListedModel(
        name=known.name,
        also=known.also,
        num_parameters=known.shape.num_parameters(),
        licence=known.licence,
        source=f"registry://{known.registry}" if known.registry else f"hf://{known.huggingface}",
        path=sources.cached(known.name),
    )
