"""Processes told apart for sure, and whole sessions of them ended: read from /proc.

A process id is used again; together with the boot and the time of its start it is not. A session
keeps its id while any process of it lives, so ending a session reaches every child of an engine,
also those whose parent has died.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, and no other that ever had its id."""

    pid: int
    started: int
    """Clock ticks from the machine's boot to its start."""
    boot: str
    """Id of that boot."""

    def is_alive(self) -> bool:
        """Whether it still runs; one that has ended and was not waited for does not."""
        found = _fields(self.pid)
        return found is not None and found[0] != "Z" and self == _identity(self.pid, found)


def identify(pid: int) -> Identity | None:
    """The process that has this id now; None where there is none."""
    found = _fields(pid)
    return _identity(pid, found) if found else None


def members(leader: Identity) -> list[int]:
    """Living processes of a leader's session, the leader among them; also when it has died."""
    now = identify(leader.pid)
    if now is not None and now != leader:
        return []  # the id went to another process, which it cannot while the session has any
    listed = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    return [pid for pid in listed if _is_in(pid, leader.pid)]


def end(leader: Identity, grace_s: float, *, but: int = 0) -> None:
    """End a session, except `but`: SIGTERM, then SIGKILL for what is left after `grace_s`.

    Returns when nothing is left.
    """
    if grace_s > 0:
        _send(leader, signal.SIGTERM, but)
    deadline = time.monotonic() + grace_s
    while [pid for pid in members(leader) if pid != but]:
        if time.monotonic() >= deadline:
            _send(leader, signal.SIGKILL, but)
        time.sleep(0.02)


def _send(leader: Identity, number: signal.Signals, but: int) -> None:
    for pid in members(leader):
        if pid != but:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _is_in(pid: int, session: int) -> bool:
    found = _fields(pid)
    return found is not None and found[0] != "Z" and int(found[3]) == session


def me() -> Identity:
    """This process."""
    found = identify(os.getpid())
    if found is None:
        raise RuntimeError("this process has no entry in /proc")
    return found


def _fields(pid: int) -> list[str] | None:
    """What /proc says of a process from its state on; None when it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _identity(pid: int, fields: list[str]) -> Identity:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    return Identity(pid, int(fields[19]), boot)
