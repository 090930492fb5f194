"""A model made ready to answer: found, its engine chosen and started, its template read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.chat.template import Template
from dialoop.core.events import Stage
from dialoop.engines.open import open_engine
from dialoop.models.load import text_folder
from dialoop.models.sources import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event
    from dialoop.engines import Engine
    from dialoop.engines.spec import EngineSettings


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that answers; `engine.stop()` ends it."""

    name: str
    """The folder's name, or the model's short name."""
    folder: Path
    engine: Engine
    template: Template
    adapters: dict[str, Template]
    """Templates of the adapters that are loaded, by name."""


async def open_model(
    reference: str, settings: EngineSettings, emit: Callable[[Event], None]
) -> OpenModel:
    """Fetch, convert and start what has to be.

    Raises:
        UserError: no such model, or it cannot be run as asked.
        MachineError: a package or memory is missing.
        UpstreamError: a hub failed, or the engine died.
    """
    folder = await asyncio.to_thread(resolve, reference, emit)
    engine = await asyncio.to_thread(open_engine, folder, settings, emit)
    template = Template.from_folder(text_folder(folder))
    adapters = {
        name: Template.from_folder(text_folder(Path(own)))
        for name, own in settings.adapters.items()
    }
    emit(Stage("load the model"))
    await engine.start()
    return OpenModel(_name(reference, folder), folder, engine, template, adapters)


def _name(reference: str, folder: Path) -> str:
    return folder.name if Path(reference).exists() else reference
