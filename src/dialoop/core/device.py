"""Accelerator facts, device-neutral: CUDA, Ascend NPU and CPU by the same questions."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from dialoop.core.errors import MachineError

if TYPE_CHECKING:
    import torch

DeviceKind = Literal["cuda", "npu", "cpu"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device that a model can live on."""

    kind: DeviceKind
    index: int
    name: str
    memory_bytes: int
    """Memory of the device; of the machine, for a CPU."""
    supports_bf16: bool

    @property
    def torch_name(self) -> str:
        """What torch calls it: `cuda:0`, `cpu`."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.index}"


def find(wanted: str = "auto") -> Device:
    """The device to work on.

    Args:
        wanted: `auto`, `cpu`, `cuda`, `cuda:1`, `npu`, `npu:0`.

    Raises:
        MachineError: that device is not here.
    """
    kind, _, index = wanted.partition(":")
    if kind == "auto":
        kind = "cuda" if _has_cuda() else "npu" if _has_npu() else "cpu"
    if kind == "cpu":
        return _cpu()
    number = int(index or 0)
    if kind == "cuda" and _has_cuda():
        return _cuda(number)
    if kind == "npu" and _has_npu():
        return _npu(number)
    raise MachineError(
        f"device `{wanted}` is not on this machine",
        hint="run `dialoop doctor` to see what is here, or use `--device cpu`",
    )


def by_number(wanted: str) -> str:
    """The name of a device that may be given as a bare number, which is that accelerator.

    Raises:
        MachineError: a number was given and there is no accelerator.
    """
    if not wanted.isdigit():
        return wanted
    kind = find().kind
    if kind == "cpu":
        raise MachineError(
            f"accelerator {wanted} is not on this machine",
            hint="leave the device out to work on the CPU",
        )
    return f"{kind}:{wanted}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told; nothing to wait for on a CPU."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated on an accelerator, resident on a CPU."""
    import torch

    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.accelerator.max_memory_allocated(device)


def machine_memory_bytes() -> int:
    """Physical memory of this machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_npu() -> bool:
    import torch

    return find_spec("torch_npu") is not None and torch.accelerator.is_available()


def _cpu() -> Device:
    fast_bf16 = "avx512_bf16" in cpu_flags() or platform.machine() == "aarch64"
    return Device("cpu", 0, cpu_name(), machine_memory_bytes(), fast_bf16)


def _cuda(index: int) -> Device:
    import torch

    if index >= torch.cuda.device_count():
        raise MachineError(
            f"device `cuda:{index}` is not on this machine, which has {torch.cuda.device_count()}",
            hint="run `dialoop doctor` to see what is here",
        )
    facts = cast("Any", torch.cuda).get_device_properties(index)
    return Device("cuda", index, facts.name, facts.total_memory, facts.major >= 8)


def _npu(index: int) -> Device:
    import torch

    name = str(torch.accelerator.current_accelerator())
    _, total = torch.accelerator.get_memory_info(index)
    return Device("npu", index, name, total, supports_bf16=True)


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU as the kernel names them; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def cpu_name() -> str:
    """What the CPU's maker calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
