"""The event stream of a job: steps, progress, metrics, notes, artifacts; sinks receive it.

A job reports through one callable; what becomes of the events (a progress bar, a JSON Lines log,
TensorBoard, the console) is the business of the sinks that were joined into it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TextIO


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the job begins; it lasts until the next one."""

    title: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is. The same task is reported again and again."""

    task: str
    """What is counted, as the user calls it: `tokenise`, `train`, `download`."""
    done: float
    total: float | None = None
    """None while the total is unknown."""
    unit: str = ""
    """`rows`, `steps`, `bytes`."""
    note: str = ""
    """A few words beside the bar: the loss, the rate."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Numbers at a step."""

    step: int
    values: dict[str, float] = field(default_factory=dict[str, float])
    """By name; the unit is part of the name (`tokens_per_s`, `loss_nats`)."""


@dataclass(frozen=True, slots=True)
class Note:
    """One line that the user should read."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something was written that outlives the job."""

    kind: str
    """`checkpoint`, `report`, `rejected rows`, `model`."""
    path: str


Event = Stage | Progress | Metrics | Note | Artifact
Emit = "Callable[[Event], None]"


class JsonLinesSink:
    """Appends every event, except progress, to a JSON Lines file.

    Args:
        path: the file; opened for appending, so that a resumed job goes on in it.
    """

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write one line and flush it, so that the log survives a kill."""
        if isinstance(event, Progress):
            return
        line: dict[str, Any] = {"time": time.time(), "event": type(event).__name__.lower()}
        json.dump(line | asdict(event), self._file, ensure_ascii=False)
        self._file.write("\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def join(*sinks: Callable[[Event], None]) -> Callable[[Event], None]:
    """One callable that hands every event to each sink, in order."""

    def emit(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return emit


def ignore(event: Event) -> None:
    """The sink that forgets: for callers that want no reports."""
    del event
