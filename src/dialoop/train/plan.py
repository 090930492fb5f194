"""What a job would do, told before it does it: parameters, memory, what is on and why."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.core import device as devices
from dialoop.core.errors import MachineError
from dialoop.models.facts import facts_of
from dialoop.models.spec import DTYPE_BYTES
from dialoop.train.online import Online
from dialoop.train.spec import TrainPlan

if TYPE_CHECKING:
    from dialoop.core.device import Device
    from dialoop.models.spec import ModelFacts
    from dialoop.train.spec import TrainJob

BYTES_A_TOKEN = 4
"""Bytes of a data file a token, JSON around it included; between 3 and 6 is usual."""
SHARE_OF_PEAK = 0.5
"""What training reaches of a plain matrix product's rate; 0.4 to 0.7 was seen."""


def plan(job: TrainJob) -> TrainPlan:
    """Predict a job from the model's shape; the weights need not be on this machine.

    Memory is weights + gradients and AdamW's two moments of what is trained (12 bytes each) +
    activations kept for the backward pass. The last is an estimate: per token and layer about 12
    widths and 4 MLP widths in the compute type (one width with activation checkpointing), which
    came within 5 % of what was measured on the InternLM3-8B shape.

    Raises:
        UserError: the model's name is unknown.
    """
    facts = facts_of(job.model)
    place = _place(job)
    compute = DTYPE_BYTES[place.dtype]
    trained = job.tuner.num_trained(facts)
    weights, states = job.tuner.weight_bytes(facts, compute), 12 * trained
    activations = _activation_bytes(job, facts, compute)
    memory = weights + states + activations
    lines = {
        "model": f"{job.model}: {facts.family}, {facts.num_layers} layers,"
        f" {facts.num_parameters / 1e9:.2f} B parameters",
        "trained": f"{trained / 1e6:.1f} M parameters ({trained / facts.num_parameters:.2%})"
        f" by {job.tuner.kind}, objective {job.objective.kind}",
        "base": _base(job, place.dtype),
        "device": place.text(memory),
        "memory": f"{_gib(memory)}: weights {_gib(weights)}, gradients and optimiser"
        f" {_gib(states)}, activations {_gib(activations)} (estimate)",
        "step": _step(job),
        "packing": "on: documents share rows without padding and do not see one another",
        "recomputing": _switch(job),
        "schedule": f"{job.epochs:g} epochs, {job.optim.schedule},"
        f" peak rate {job.optim.lr or job.tuner.default_lr:g}",
        "data": f"{', '.join(job.data.dataset)}; validation {job.data.validation}",
        "output": str(job.output),
        "time": _time(job, facts, place),
    }
    return TrainPlan(
        lines=lines,
        memory_bytes=memory,
        trained_parameters=trained,
        total_parameters=facts.num_parameters,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job would run."""

    device: Device | None
    """None when it is not on this machine."""
    dtype: str
    """`bf16` or `fp32`; the type that the job would take, bf16 where that is not known."""
    lacks: str = ""

    def text(self, needed_bytes: int) -> str:
        """The device, and whether the job may fit."""
        if self.device is None:
            return self.lacks
        has = f"{self.device.name}, {_gib(self.device.memory_bytes)}, computing in {self.dtype}"
        if needed_bytes > self.device.memory_bytes:
            return f"{has}: THE JOB MAY NOT FIT; lower max_length, or --activation_checkpointing"
        return has


def _place(job: TrainJob) -> Place:
    known = "bf16" if job.dtype == "auto" else job.dtype
    try:
        device = devices.find(devices.by_number(job.device))
    except MachineError as error:
        return Place(None, known, str(error.args[0]))
    if job.dtype == "auto" and not device.supports_bf16:
        known = "fp32"
    return Place(device, known)


def _activation_bytes(job: TrainJob, facts: ModelFacts, compute: int) -> int:
    per_layer = facts.hidden_size
    if not job.activation_checkpointing:
        per_layer = 12 * facts.hidden_size + 4 * facts.intermediate_size
    return job.batch_size * job.max_length * facts.num_layers * per_layer * compute


def _time(job: TrainJob, facts: ModelFacts, place: Place) -> str:
    """Floating-point work of the tokens that the files may hold, at a rate measured just now."""
    paths = [Path(name.partition("#")[0]) for name in job.data.dataset]
    if absent := [str(path) for path in paths if not path.exists()]:
        return f"unknown until the data is here: {', '.join(absent)}"
    if place.device is None:
        return "unknown without the device"
    if job.objective.is_online:
        return "unknown: it depends on how long the answers are"
    tokens = min(sum(map(_bytes_in, paths)) / BYTES_A_TOKEN * job.epochs, _most_tokens(job))
    passes = (6 if job.tuner.kind == "full" else 4) + 2 * job.activation_checkpointing
    rate = SHARE_OF_PEAK * measured_flops(place.device.torch_name, place.dtype)
    minutes = passes * facts.num_parameters * tokens / rate / 60
    length = f"{max(1, minutes):.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return f"about {length} for some {tokens:,.0f} tokens (estimate)"


def _most_tokens(job: TrainJob) -> float:
    steps = job.max_steps or math.inf
    return steps * job.accumulate * job.batch_size * job.max_length


def _bytes_in(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def measured_flops(device: str, dtype: str) -> float:
    """Multiplications and additions a second of a square matrix product, the best of three.

    Args:
        device: as torch names it.
        dtype: `bf16` or `fp32`.
    """
    import torch

    place = torch.device(device)
    size = 1024 if place.type == "cpu" else 8192
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a = torch.ones(size, size, dtype=kind, device=place)
    best = math.inf
    for _ in range(4):  # the first one warms up
        devices.synchronize(place)
        start = time.perf_counter()
        _ = a @ a
        devices.synchronize(place)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _switch(job: TrainJob) -> str:
    if job.activation_checkpointing:
        return "on, as asked: recomputed in the backward pass"
    return "off: faster; --activation_checkpointing saves memory"


def _step(job: TrainJob) -> str:
    if isinstance(job.objective, Online) and job.objective.is_online:
        prompts, updates = job.accumulate * job.objective.num_prompts, job.objective.num_iterations
        return f"{prompts} prompts are answered by the model as it is, then {updates} updates"
    row = job.batch_size * job.max_length
    return f"up to {row * job.accumulate:,} tokens: {job.accumulate} packed rows of {row:,}"


def _base(job: TrainJob, dtype: str) -> str:
    if job.tuner.quantization:
        return f"frozen, in 4 bits ({job.tuner.quantization}, double quantisation)"
    return "trained in float32" if job.tuner.kind == "full" else f"frozen, {dtype}"


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
