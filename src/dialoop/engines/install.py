"""`dialoop engine install`: an engine in an environment of its own, checked first and at the end.

A run that was stopped goes on where it was: the environment is kept, and pip keeps what it fetched.
Nothing counts as installed until the engine was imported there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.core.env import isolated
from dialoop.core.errors import MachineError
from dialoop.core.events import Note, Progress, Stage
from dialoop.core.files import lock_folder
from dialoop.core.schema import Result
from dialoop.engines import environments as envs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dialoop.core.events import Event
    from dialoop.engines.environments import Recipe
    from dialoop.engines.spec import InstallJob

_LOCKS = Path(__file__).parent / "locks"
_NUM_LINES = 12
_COLLECTED = re.compile(r"(?:Collecting|Requirement already satisfied:) (\S+)")
_TORCH_CPU = "https://download.pytorch.org/whl/cpu"


class InstallResult(Result, frozen=True):
    """An environment that is ready."""

    engine: str
    version: str
    python: str
    was_there: bool
    """Whether nothing had to be done."""

    def text(self) -> str:
        """One line."""
        verb = "is there already" if self.was_there else "is ready"
        return f"{self.engine} {self.version} {verb}: {self.python}"


def run(job: InstallJob, emit: Callable[[Event], None]) -> InstallResult:
    """Make an environment, or finish one.

    Raises:
        MachineError: this machine cannot run the engine or has no room, or pip failed.
        UserError: another process installs it now.
    """
    recipe = envs.RECIPES[job.engine]
    if envs.is_current(recipe.name) and not job.again:
        return _result(recipe, was_there=True)
    _check(recipe, job, emit)
    folder = envs.folder(recipe.name)
    with lock_folder(folder, "environment"):
        python = folder / "bin" / "python"
        if not python.exists():
            emit(Stage(f"make the environment {folder}"))
            _call([sys.executable, "-m", "venv", str(folder)], emit)
        emit(Stage(f"install {' '.join(recipe.pins)}: some GB, minutes"))
        _install(python, recipe, emit)
        emit(Stage(f"import {recipe.module} there"))
        version = envs.ask_version(str(python), recipe)
        if version is None:
            raise MachineError(
                f"{recipe.module} was installed in `{folder}` and cannot be imported",
                hint=f"run `{python} -c 'import {recipe.module}'` to see why",
            )
        freeze = _call([*_pip(python), "freeze"], emit)
        envs.mark_installed(recipe.name, version, freeze)
    return _result(recipe, was_there=False)


def _result(recipe: Recipe, *, was_there: bool) -> InstallResult:
    found = envs.installed(recipe.name)
    if found is None:
        raise RuntimeError(f"{recipe.name} was marked as installed and is not")
    return InstallResult(
        engine=recipe.name, version=found.version, python=found.python, was_there=was_there
    )


def _check(recipe: Recipe, job: InstallJob, emit: Callable[[Event], None]) -> None:
    found = envs.problems(recipe)
    if found and not job.anyway:
        raise MachineError(
            f"{recipe.name} cannot run on this machine: {'; '.join(found)}",
            hint="`dialoop engine doctor` shows which engines can; `--anyway` installs it all the "
            "same",
        )
    for problem in found:
        emit(Note(f"{recipe.name}: {problem}", "warning"))
    if problem := envs.disk_problem(recipe):
        raise MachineError(
            f"no room for {recipe.name}: {problem}",
            hint="free some space, or set DIALOOP_HOME to a larger disk",
        )


def _install(python: Path, recipe: Recipe, emit: Callable[[Event], None]) -> None:
    """Pip's steps, each of which does nothing when it was done before."""
    lock = _LOCKS / f"{recipe.name}-py{sys.version_info.major}{sys.version_info.minor}.txt"
    bounds = ["--constraint", str(lock)] if lock.exists() else []
    pip = _pip(python)
    _call([*pip, "install", *bounds, *recipe.pins], emit)
    if recipe.drop:
        _call([*pip, "uninstall", "--yes", *recipe.drop], emit)
    if recipe.after:
        _call([*pip, "install", "--no-deps", *recipe.after], emit)


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _call(command: Sequence[str], emit: Callable[[Event], None]) -> str:
    """Run a step and report the packages that it names; its output.

    Raises:
        MachineError: it failed; the message has its last lines.
    """
    lines: list[str] = []
    names: set[str] = set()
    with subprocess.Popen(  # noqa: S603  commands of ours
        command,
        env=isolated(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        try:
            for line in child.stdout or ():
                lines.append(line)
                if found := _COLLECTED.match(line):
                    names.add(re.split(r"[<>=!\[;(]", found[1])[0])
                    note = found[1][:40]
                    emit(Progress("resolve", len(names), unit="packages", note=note))
        except BaseException:
            with suppress(ProcessLookupError):
                child.terminate()
            raise
    text = "".join(lines)
    if child.returncode != 0:
        raise MachineError(
            f"`{' '.join(command)}` failed:\n"
            + "".join(f"  {line}" for line in lines[-_NUM_LINES:]),
            hint=_hint(text),
        )
    return text


def _hint(text: str) -> str:
    if "No matching distribution found for torch==" in text:
        return (
            f"set PIP_EXTRA_INDEX_URL={_TORCH_CPU}, which has the CPU builds of torch, "
            "and run it again"
        )
    return "run it again when the cause is gone; what was fetched is kept"
