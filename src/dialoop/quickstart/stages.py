"""Stages that are done once: each result is kept beside what it was made from."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any, TypeVar

from dialoop.core.events import Note, Stage
from dialoop.core.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.core.schema import Result

R = TypeVar("R", bound="Result")


class Clock:
    """A sink that tells downloads from work, and passes every event on.

    A download is a stage whose title begins so; it lasts until the next stage.

    Args:
        emit: where the events go.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._download_began: float | None = None
        self._downloads_s = 0.0
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Look at one event."""
        if isinstance(event, Stage):
            self._end_download()
            if event.title.lower().startswith("download"):
                self._download_began = time.monotonic()
        self._emit(event)

    @property
    def downloads_s(self) -> float:
        """Seconds spent downloading so far."""
        self._end_download()
        return self._downloads_s

    @property
    def work_s(self) -> float:
        """Seconds since the beginning, without downloads."""
        return time.monotonic() - self._began - self.downloads_s

    def _end_download(self) -> None:
        if self._download_began is not None:
            self._downloads_s += time.monotonic() - self._download_began
            self._download_began = None


class Stages:
    """The stages of one output folder.

    Args:
        folder: the output folder; results are kept in its `stages`.
        clock: what the stages report to.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.reused: list[str] = []
        self.seconds: dict[str, float] = {}

    def once(
        self, name: str, inputs: dict[str, Any], kind: type[R], make: Callable[[Path], R]
    ) -> tuple[Path, R]:
        """The stage's folder and result: made now, or by an earlier run from the same inputs.

        Args:
            name: the stage.
            inputs: everything that its outcome depends on, as JSON.
            kind: class of the result.
            make: makes the outcome in the folder given and returns the result.
        """
        place = self.folder / f"{name}-{_key(inputs)}"  # other inputs, another folder
        record = self.folder / "stages" / f"{place.name}.json"
        if record.is_file() and place.is_dir():
            self.clock(Note(f"{name}: done by an earlier run, in `{place}`"))
            self.reused.append(name)
            return place, kind.model_validate_json(record.read_bytes())
        result = self.timed(name, lambda: make(place))
        write_text(record, result.model_dump_json(indent=2))
        return place, result

    def timed(self, name: str, make: Callable[[], Any]) -> Any:
        """Run a stage and count its seconds of work."""
        began = self.clock.work_s
        result = make()
        self.seconds[name] = round(self.clock.work_s - began, 2)
        return result


def _key(inputs: dict[str, Any]) -> str:
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
