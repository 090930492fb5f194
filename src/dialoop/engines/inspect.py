"""`dialoop engine list` and `doctor`: environments, engines that run, engines that can run."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from dialoop.core.device import cpu_flags
from dialoop.core.schema import Result, Spec
from dialoop.engines import environments as envs
from dialoop.engines import sessions, state

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from dialoop.core.events import Event
    from dialoop.engines.external import Abilities
    from dialoop.engines.spec import EngineDoctorJob, EngineListJob

EMBEDDED = {
    "openvino": ("openvino_genai", "pip install 'dialoop[serve]'"),
    "transformers": ("transformers", "pip install 'dialoop[train]'"),
}
"""Engines inside dialoop: the module that each needs, and what brings it."""


class EnvironmentRow(Spec, frozen=True):
    """One environment that can be made."""

    name: str
    version: str | None
    """Of the engine in it; none when it is not there."""
    pins: list[str]
    is_current: bool
    """Whether it was made by the present pins."""
    python: str | None


class RunningRow(Spec, frozen=True):
    """One engine that runs."""

    engine: str
    port: int
    num_processes: int
    owner: int | None
    """Process id of the dialoop that uses it; none when that is gone."""
    log: str


class EngineList(Result, frozen=True):
    """What is installed and what runs."""

    environments: list[EnvironmentRow]
    running: list[RunningRow]

    def text(self) -> RenderableType:
        """Two tables."""
        rows: list[tuple[str, ...]] = [
            (row.name, row.version or "not installed", _state(row), row.python or "")
            for row in self.environments
        ]
        parts = [_table("Environments", rows)]
        running: list[tuple[str, ...]] = [
            (row.engine, f"port {row.port}", f"{row.num_processes} processes", _owner(row))
            for row in self.running
        ]
        if running:
            parts.append(_table("Running", running))
        return _group(parts)


class DoctorRow(Spec, frozen=True):
    """One engine, and whether it can serve here."""

    engine: str
    runs: bool
    """Whether it can serve now."""
    fits: bool
    """Whether this machine could run it, installed or not."""
    problems: list[str]
    command: str | None
    """What brings it, where something can."""
    abilities: dict[str, str]
    """The capability table's row of an external engine."""


class EngineDiagnosis(Result, frozen=True):
    """Which engines run here, and why the others do not."""

    engines: list[DoctorRow]
    asked: str | None
    """The engine that was asked about, if one was."""

    @property
    def exit_code(self) -> int:
        """3 when the engine that was asked about cannot serve, or none can."""
        return 0 if any(row.runs for row in self.engines) else 3

    def text(self) -> RenderableType:
        """A row an engine; then what each can do."""
        rows: list[tuple[str, ...]] = [
            (row.engine, "runs here" if row.runs else "does not run", _why(row))
            for row in self.engines
        ]
        able: list[tuple[str, ...]] = [
            (row.engine, _able(row)) for row in self.engines if row.abilities
        ]
        return _group([_table("Engines", rows), *([_table("Abilities", able)] if able else [])])


def list_engines(job: EngineListJob, emit: Callable[[Event], None]) -> EngineList:
    """Environments and running engines; changes nothing."""
    del job, emit
    rows: list[EnvironmentRow] = []
    for name, recipe in envs.RECIPES.items():
        found = envs.installed(name)
        rows.append(
            EnvironmentRow(
                name=name,
                version=found.version if found else None,
                pins=[*recipe.pins],
                is_current=envs.is_current(name),
                python=found.python if found else None,
            )
        )
    running = [
        RunningRow(
            engine=found.engine,
            port=found.port,
            num_processes=len(members),
            owner=found.owner.pid if found.owner.is_alive() else None,
            log=found.log,
        )
        for _, found in state.states()
        if (members := sessions.members(found.guard))
    ]
    return EngineList(environments=rows, running=running)


def diagnose(job: EngineDoctorJob, emit: Callable[[Event], None]) -> EngineDiagnosis:
    """Ask this machine what each engine needs; starts and changes nothing."""
    del emit
    rows = [_embedded(name) for name in EMBEDDED] + [_external(kind) for kind in envs.EXTERNALS]
    chosen = [row for row in rows if job.engine in (None, row.engine)]
    return EngineDiagnosis(engines=chosen, asked=job.engine)


def _embedded(name: str) -> DoctorRow:
    module, command = EMBEDDED[name]
    is_there = find_spec(module) is not None
    problems = [] if is_there else [f"the package of `{module}` is missing"]
    fits = name != "openvino" or "avx2" in cpu_flags() or "asimd" in cpu_flags()
    if not fits:
        problems.append("it needs a CPU with avx2 or asimd")
    return DoctorRow(
        engine=name,
        runs=not problems,
        fits=fits,
        problems=problems,
        command=None if is_there else command,
        abilities={},
    )


def _external(kind: str) -> DoctorRow:
    engine = envs.EXTERNALS[kind]
    recipe = envs.RECIPES[engine.environment]
    unfit = envs.problems(recipe)
    found = envs.installed(engine.environment)
    is_there = found is not None or find_spec(engine.module) is not None
    command = f"dialoop engine install {engine.environment}"
    return DoctorRow(
        engine=kind,
        runs=is_there and not unfit,
        fits=not unfit,
        problems=unfit or ([] if is_there else ["it is not installed"]),
        command=None if is_there or unfit else command,
        abilities=_row(engine.abilities),
    )


def _row(able: Abilities) -> dict[str, str]:
    plain = {
        "devices": ", ".join(able.devices),
        "formats": ", ".join(sorted(able.formats)),
        "adapters": able.adapters,
    }
    flags = {
        "multimodal": able.multimodal,
        "tools": able.tools,
        "structured output": able.structured,
        "logprobs": able.logprobs,
        "embeddings": able.embeddings,
        "rerank": able.rerank,
    }
    return plain | {name: "yes" if value else "no" for name, value in flags.items()}


def _able(row: DoctorRow) -> str:
    return "; ".join(f"{name}: {value}" for name, value in row.abilities.items())


def _why(row: DoctorRow) -> str:
    parts = [*row.problems, *([f"run `{row.command}`"] if row.command else [])]
    return "; ".join(parts)


def _state(row: EnvironmentRow) -> str:
    if row.version is None:
        return ", ".join(row.pins)
    return "current" if row.is_current else "made by other pins: install it again"


def _owner(row: RunningRow) -> str:
    return f"used by process {row.owner}" if row.owner else "its owner is gone"


def _table(title: str, rows: list[tuple[str, ...]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=None,
        show_header=False,
        padding=(0, 2, 0, 0),
    )
    for n in range(len(rows[0])):
        table.add_column(no_wrap=n == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _group(parts: list[RenderableType]) -> RenderableType:
    from rich.console import Group

    return Group(*parts)
