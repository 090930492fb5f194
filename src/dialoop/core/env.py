"""Machine facts (paths, tokens, world size): the only reader of the environment."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_RANK_VARIABLES = frozenset({
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
})  # fmt: skip


def rank() -> int:
    """This process's rank in the job; 0 when there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's place among those of the job on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes of the job this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def home() -> Path:
    """Where dialoop keeps what can be made again: models, caches (`DIALOOP_HOME`)."""
    if given := os.environ.get("DIALOOP_HOME"):
        return Path(given).expanduser()
    return user_cache()


def user_cache() -> Path:
    """Where this user's programs meet, whatever `DIALOOP_HOME` each of them has."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dialoop"


def num_cpus() -> int:
    """Processors that this process may use, not those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_offline() -> bool:
    """Whether hubs must not be asked (`HF_HUB_OFFLINE`, `DIALOOP_OFFLINE`)."""
    names = ("HF_HUB_OFFLINE", "DIALOOP_OFFLINE")
    return any(os.environ.get(n, "").lower() in {"1", "true", "yes", "on"} for n in names)


def value_of(name: str) -> str | None:
    """A variable that a job file names as `${NAME}`; None where it is not set."""
    return os.environ.get(name)


def variables(**changes: str) -> dict[str, str]:
    """The environment for a child process, with changes."""
    return dict(os.environ) | changes


def isolated(**changes: str) -> dict[str, str]:
    """The environment for a Python of another environment, with changes: nothing of ours leaks."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in variables(**changes).items() if name not in ours}


def visible_gpus() -> list[str] | None:
    """What `CUDA_VISIBLE_DEVICES` lists: numbers or UUIDs; None where it is not set."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if given is None else [part.strip() for part in given.split(",") if part.strip()]


def default(name: str, value: str) -> None:
    """Set a variable for libraries that are imported later, unless the user has set it."""
    os.environ.setdefault(name, value)


@contextmanager
def without_launcher() -> Generator[None]:
    """Libraries that start processes here hand on nothing of the job's ranks to them."""
    names = [n for n in os.environ if n in _RANK_VARIABLES or n.startswith("TORCHELASTIC_")]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def has_shared_metrics() -> bool:
    """Whether processes write their Prometheus numbers into one folder."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
