"""Jobs that behave badly on purpose, and the program around them as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dialoop.core.errors import MachineError, UpstreamError, UserError
from dialoop.core.events import Artifact, Metrics, Note, Progress, Stage
from dialoop.core.schema import Result, Spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event

End = Literal[
    "well", "user", "machine", "upstream", "bug", "interrupt", "full", "memory", "many", "quiet"
]


class TrialJob(Spec, frozen=True):
    """End in the way that is asked for."""

    end: End = "well"
    """How it ends."""
    times: Annotated[int, Field(ge=0)] = 1
    """How often the result is said."""


class TrialResult(Result, frozen=True):
    """What came of it."""

    said: list[str]

    def text(self) -> str:
        return "\n".join(self.said)


def run(job: TrialJob, emit: Callable[[Event], None]) -> TrialResult:
    emit(Stage("trying"))
    emit(Progress("rows", 1, 2, "rows"))
    emit(Progress("rows", 2, 2, "rows"))
    emit(Metrics(1, {"lr": 0.1, "loss_nats": 2.5}))
    emit(Note("careful", "warning"))
    emit(Artifact("report", "report.html"))
    print("a library prints this")  # noqa: T201  as libraries do
    os.system("echo a child prints this")
    _end(job.end)
    return TrialResult(said=["你好"] * job.times)


def _end(how: End) -> None:
    match how:
        case "user":
            raise UserError("the request is wrong", hint="ask otherwise")
        case "machine":
            raise MachineError("no such device")
        case "upstream":
            raise UpstreamError("the hub is down")
        case "bug":
            raise ZeroDivisionError("oh")
        case "interrupt":
            raise KeyboardInterrupt
        case "full":
            raise OSError(28, "No space left on device", "/some/file")
        case "memory":
            raise MemoryError
        case _:
            return


def plan(job: TrialJob) -> TrialResult:
    return TrialResult(said=[f"would end {job.end}"])


def converse(
    job: TrialJob,
    emit: Callable[[Event], None],
    read: Callable[[str], str],
    write: Callable[[str], None],
) -> TrialResult:
    heard: list[str] = []
    try:
        while True:
            heard.append(read("> "))
            write(f"heard {heard[-1]}\n")
    except EOFError:
        return TrialResult(said=heard)


PROGRAM = """\
import sys
from dialoop.cli import main
from dialoop.jobs.catalog import CATALOG, JobKind
at = "tests.cli.program:"
trial = JobKind(at + "TrialJob", at + "run", "try", "Use", plan=at + "plan", also=("attempt",))
CATALOG["trial"] = trial
CATALOG["trial twice"] = trial
CATALOG["converse"] = JobKind(
    at + "TrialJob", at + "converse", "talk", "Use", interactive=True
)
main.entry()
"""


def dialoop(
    *words: str, root: Path, typed: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, with the trial verbs in its catalog."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        check=False,
        input=typed,
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "LANG": "C.UTF-8"} | environment,
        timeout=60,
    )
