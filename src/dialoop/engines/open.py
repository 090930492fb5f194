"""Any engine for a model: embedded ones are chosen, external ones are what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.core.errors import UserError
from dialoop.engines.choose import prepare
from dialoop.engines.environments import EXTERNALS
from dialoop.engines.plan import prepare_external
from dialoop.engines.spec import ExternalSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.engines import Engine
    from dialoop.engines.spec import EngineSettings


def open_engine(model: Path, settings: EngineSettings, emit: Callable[[Event], None]) -> Engine:
    """An engine for a checkpoint or a PEFT adapter, checked and not started.

    Raises:
        UserError: the model cannot be run as asked.
        MachineError: a package, a device or memory is missing.
    """
    if settings.engine in EXTERNALS:
        return prepare_external(model, settings, emit)
    if settings.external != ExternalSettings():
        raise UserError(
            f"external: the engine `{settings.engine}` has none of these settings",
            hint=f"leave them out, or use `--engine` {', '.join(EXTERNALS)}",
        )
    return prepare(model, settings, emit)
