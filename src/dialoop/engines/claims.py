"""Ports and GPUs of engines: one engine each, kept by file locks that end with their holders.

The lock's file descriptor is handed to the engine, so a claim lasts as long as the engine does,
whatever becomes of the process that started it.
"""

from __future__ import annotations

import fcntl
import socket
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoop.core.env import home, visible_gpus
from dialoop.core.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

PORTS = range(21000, 22000)
"""Below the ports that systems hand out by themselves."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU that this process may use."""

    index: int
    """Its number on the machine."""
    uuid: str
    name: str
    memory_bytes: int
    free_bytes: int
    capability: float
    """CUDA's compute capability: 7.5 is a T4, 9.0 an H100."""


class Claim:
    """A thing that is held until it is released, and while a process that was given `fd` lives."""

    def __init__(self, name: str, file: TextIO) -> None:
        self.name, self._file = name, file

    @property
    def fd(self) -> int:
        """To be handed to the engine's process."""
        return self._file.fileno()

    def release(self) -> None:
        """Let go of it here."""
        self._file.close()


def claim(name: str, holder: str) -> Claim | None:
    """Take a thing by its name; None when it is taken."""
    folder = home() / "engines" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / name).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(holder)
    file.flush()
    return Claim(name, file)


def holder_of(name: str) -> str:
    """Who took a thing last."""
    path = home() / "engines" / "claims" / name
    return path.read_text("utf-8") if path.exists() else ""


def claim_port(holder: str, ports: Sequence[int] = PORTS) -> tuple[Claim, int]:
    """Take a port that nothing listens on.

    Raises:
        MachineError: none is free.
    """
    for port in ports:
        held = claim(f"port-{port}", holder)
        if held and _is_free(port):
            return held, port
        if held:
            held.release()
    raise MachineError(
        f"no port from {ports[0]} to {ports[-1]} is free for an engine",
        hint="stop engines that are not needed (`dialoop engine list` shows them)",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def claim_gpus(gpus: Sequence[Gpu], num: int, holder: str) -> tuple[list[Claim], list[Gpu]]:
    """Take GPUs, those with the most free memory first.

    Raises:
        MachineError: there are not so many, or other engines hold them.
    """
    if num > len(gpus):
        raise MachineError(
            f"{num} GPUs are needed and {len(gpus)} may be used here",
            hint="lower `--external.tensor_parallel`, or widen CUDA_VISIBLE_DEVICES",
        )
    claims: list[Claim] = []
    taken: list[Gpu] = []
    for gpu in sorted(gpus, key=lambda gpu: -gpu.free_bytes):
        if len(taken) < num and (held := claim(f"gpu-{gpu.uuid}", holder)):
            claims.append(held)
            taken.append(gpu)
    if len(taken) < num:
        for held in claims:
            held.release()
        others = {holder_of(f"gpu-{gpu.uuid}") for gpu in gpus if gpu not in taken}
        raise MachineError(
            f"{num} GPUs are needed and {len(taken)} of {len(gpus)} are free of engines "
            f"(held by: {', '.join(sorted(others))})",
            hint="stop one of those engines, or lower `--external.tensor_parallel`",
        )
    return claims, sorted(taken, key=lambda gpu: gpu.index)


def find_gpus() -> list[Gpu]:
    """NVIDIA GPUs that this process may use, by `nvidia-smi`; none where it finds none.

    Raises:
        MachineError: the driver is there and does not answer.
    """
    fields = "index,uuid,name,memory.total,memory.free,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired as error:
        raise MachineError(
            "nvidia-smi does not answer", hint="look at the GPU's driver (`dmesg`)"
        ) from error
    if done.returncode != 0:
        return []
    found = [_gpu(line) for line in done.stdout.splitlines() if line.strip()]
    wanted = visible_gpus()
    if wanted is None:
        return found
    return [g for g in found if str(g.index) in wanted or any(g.uuid.startswith(w) for w in wanted)]


def _gpu(line: str) -> Gpu:
    index, uuid, name, total, free, capability = (part.strip() for part in line.split(","))
    mib = 2**20
    return Gpu(int(index), uuid, name, int(total) * mib, int(free) * mib, float(capability))
