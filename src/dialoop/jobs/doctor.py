"""`dialoop doctor`: what works on this machine, what is missing, the command that brings it.

Versions are read from package metadata, so nothing heavy is imported here; the accelerator is
asked in a child process, because a broken driver may take its process down.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from dialoop import __version__
from dialoop.core import env
from dialoop.core.device import cpu_flags, cpu_name, machine_memory_bytes
from dialoop.core.events import Note, Stage
from dialoop.core.schema import Result, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from dialoop.core.events import Event

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("load and tune models", ("torch", "transformers", "safetensors", "tensorboard")),
    "data": ("Parquet files, Chinese word segmentation", ("pyarrow", "rjieba", "zstandard")),
    "starter": ("build the starter model without a hub", ("gguf",)),
    "serve": (
        "serve models over HTTP on this machine",
        ("openvino-genai", "aiohttp", "uvicorn", "prometheus-client"),
    ),
    "gateway": ("keep keys, conversations and usage", ("sqlalchemy", "aiosqlite")),
    "postgres": ("keep them in PostgreSQL", ("asyncpg",)),
    "qlora": ("tune with 4-bit base weights", ("bitsandbytes",)),
    "quant": ("read and check quantized models", ("compressed-tensors", "accelerate")),
    "hub": ("fetch from Hugging Face and ModelScope", ("huggingface-hub", "modelscope")),
}
"""What each extra of pyproject.toml is for, and its packages."""

ENGINES = {"openvino": "openvino-genai", "transformers": "transformers", "vllm": "vllm"}
"""Engines by the package that they live in."""

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd")
"""Instruction sets that decide how fast a CPU trains and serves."""

_ASK_TORCH = """\
import json, torch
kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
found = []
for index in range(torch.accelerator.device_count() if kind else 0):
    total = torch.get_device_module(kind).mem_get_info(index)[1]
    name = torch.get_device_module(kind).get_device_name(index)
    found.append({"name": f"{kind.type}:{index}", "model": name, "memory_bytes": total})
print(json.dumps(found))
"""


class DoctorJob(Spec, frozen=True):
    """Look at this machine."""

    timeout_s: PositiveInt = 60
    """How long the accelerator may take to answer, in seconds; 60 is plenty."""


class Accelerator(Spec, frozen=True):
    """A device beside the CPU."""

    name: str
    """What torch calls it: `cuda:0`."""
    model: str
    """What its maker calls it."""
    memory_bytes: int
    """Its memory."""


class Disk(Spec, frozen=True):
    """Room in a folder."""

    purpose: str
    """What is kept there."""
    path: str
    """The folder."""
    free_bytes: int
    """Room that is left."""


class Extra(Spec, frozen=True):
    """A part of dialoop that is installed when it is wanted."""

    name: str
    """Its name in `dialoop[...]`."""
    enables: str
    """What it is for."""
    versions: dict[str, str | None]
    """Version of each package; none when it is missing."""
    command: str | None
    """What installs the rest; none when nothing is missing."""


class Diagnosis(Result, frozen=True):
    """What was found."""

    dialoop: str
    python: str
    platform: str
    cpu: str
    num_cpus: int
    """Processors that this process may use."""
    cpu_features: list[str]
    memory_bytes: int
    accelerators: list[Accelerator]
    accelerator_problem: str | None
    """Why the accelerator could not be asked."""
    disks: list[Disk]
    packages: dict[str, str | None]
    """What every command needs."""
    extras: list[Extra]
    engines: dict[str, str | None]
    """Version of each engine's package; none when it is missing."""
    offline: bool
    """Whether hubs are switched off by the environment."""

    def text(self) -> RenderableType:
        """Two tables: the machine, and what is installed."""
        from rich.console import Group
        from rich.text import Text

        missing = [extra for extra in self.extras if extra.command]
        parts: list[RenderableType] = [
            Text("This machine", style="bold"),
            _table(self._machine_rows()),
            Text("\nInstalled", style="bold"),
            _table(self._package_rows()),
        ]
        if missing:
            rows = [(extra.enables, extra.command or "") for extra in missing]
            parts += [Text("\nMissing, and what brings it", style="bold"), _table(rows)]
        return Group(*parts)

    def _machine_rows(self) -> list[tuple[str, str]]:
        found = [
            f"{item.name} {item.model}, {_gib(item.memory_bytes)}" for item in self.accelerators
        ]
        none = f"unknown: {self.accelerator_problem}" if self.accelerator_problem else "none"
        return [
            ("dialoop", self.dialoop),
            ("Python", f"{self.python} on {self.platform}"),
            ("CPU", f"{self.cpu}, {self.num_cpus} processors"),
            ("CPU features", " ".join(self.cpu_features) or "none that matter"),
            ("memory", _gib(self.memory_bytes)),
            ("accelerator", "; ".join(found) or none),
            *((f"disk, {d.purpose}", f"{_gib(d.free_bytes)} free in {d.path}") for d in self.disks),
            ("hubs", "switched off by the environment" if self.offline else "may be asked"),
        ]

    def _package_rows(self) -> list[tuple[str, str]]:
        rows = [("every command", _versions(self.packages))]
        rows += [
            (f"{'no' if extra.command else 'ok'}  {extra.name}", _versions(extra.versions))
            for extra in self.extras
        ]
        rows.append(("engines", _versions(self.engines)))
        return rows


def run(job: DoctorJob, emit: Callable[[Event], None]) -> Diagnosis:
    """Look at the machine; nothing is changed, nothing is fetched."""
    emit(Stage("looking at this machine"))
    accelerators, problem = _accelerators(job.timeout_s)
    if problem:
        emit(Note(f"the accelerator could not be asked: {problem}", "warning"))
    return Diagnosis(
        dialoop=__version__,
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        cpu=cpu_name(),
        num_cpus=env.num_cpus(),
        cpu_features=[name for name in CPU_FEATURES if name in cpu_flags()],
        memory_bytes=machine_memory_bytes(),
        accelerators=accelerators,
        accelerator_problem=problem,
        disks=[_disk("models and caches", env.home()), _disk("this folder", Path.cwd())],
        packages={name: _version(name) for name in ("pydantic", "numpy", "tokenizers", "jinja2")},
        extras=[_extra(name) for name in EXTRAS],
        engines={name: _version(package) for name, package in ENGINES.items()},
        offline=env.is_offline(),
    )


def _accelerators(timeout_s: int) -> tuple[list[Accelerator], str | None]:
    """The accelerators, or why they could not be asked."""
    if _version("torch") is None:
        return [], "torch is not installed"
    try:
        child = subprocess.run(  # noqa: S603  our own program text
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {timeout_s} s"
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        return [], lines[-1] if lines else f"torch ended with code {child.returncode}"
    found = json.loads(child.stdout.strip().splitlines()[-1])
    return [Accelerator.model_validate(item) for item in found], None


def _extra(name: str) -> Extra:
    enables, packages = EXTRAS[name]
    versions = {package: _version(package) for package in packages}
    missing = None in versions.values()
    return Extra(
        name=name,
        enables=enables,
        versions=versions,
        command=f"pip install 'dialoop[{name}]'" if missing else None,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disk(purpose: str, folder: Path) -> Disk:
    there = folder
    while not there.exists():
        there = there.parent
    return Disk(purpose=purpose, path=str(folder), free_bytes=shutil.disk_usage(there).free)


def _versions(found: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _table(rows: list[tuple[str, str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(f"  {name}"), Text(value))
    return table
