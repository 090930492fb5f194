"""What is written down of a running engine, so that a later process finds and takes it over."""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dialoop.core.env import home
from dialoop.core.files import write_text
from dialoop.engines.sessions import Identity

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineState:
    """One running engine."""

    engine: str
    key: str
    """Digest of what was asked for: engines with equal keys do the same."""
    guard: Identity
    """The leader of the engine's session."""
    owner: Identity
    """The process that uses it."""
    port: int
    log: str


def folder() -> Path:
    """Where engines are written down."""
    return home() / "engines" / "running"


def write_state(path: Path, state: EngineState) -> None:
    """Write an engine down, or its new owner."""
    write_text(path, json.dumps(asdict(state), indent=1) + "\n")


def read_state(path: Path) -> EngineState | None:
    """What a file says; None when it is gone, or was written by another version."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        raw["guard"], raw["owner"] = Identity(**raw["guard"]), Identity(**raw["owner"])
        return EngineState(**raw)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def states() -> list[tuple[Path, EngineState]]:
    """Everything that is written down."""
    paths = sorted(folder().glob("*.json")) if folder().exists() else []
    return [(path, state) for path in paths if (state := read_state(path))]


@contextmanager
def book() -> Generator[None]:
    """Only one process at a time takes engines over or clears them away."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
