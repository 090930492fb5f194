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
from dialoop.train.activations import needed_bytes
from dialoop.train.online import Online
from dialoop.train.spec import TrainPlan

if TYPE_CHECKING:
    from dialoop.core.device import Device
    from dialoop.models.spec import ModelFacts
    from dialoop.train.activations import Mode
    from dialoop.train.spec import TrainJob

BYTES_A_TOKEN = 4
"""Bytes of a data file a token, JSON around it included; between 3 and 6 is usual."""
MODES: dict[Mode, str] = {
    "none": "all kept; fastest",
    "selective": "matrix products and attention kept, the rest recomputed",
    "full": "only each layer's input kept, layers recomputed; about a third slower",
    "offload": "only each layer's input kept, in the host's memory",
}
SHARE_OF_MEMORY = 0.9
"""What a prediction may use of the device; the rest is for the head's chunks and fragments."""
SHARE_OF_PEAK = 0.5
"""What training reaches of a plain matrix product's rate; 0.4 to 0.7 was seen."""


def plan(job: TrainJob) -> TrainPlan:
    """Predict a job from the model's shape; the weights need not be on this machine.

    Memory is weights + gradients and optimiser states of what is trained + activations kept for the
    backward pass (see `activations.needed_bytes`).

    Raises:
        UserError: the model's name is unknown.
    """
    facts = facts_of(job.model)
    place = _place(job)
    compute = DTYPE_BYTES[place.dtype]
    trained = job.tuner.num_trained(facts)
    weights = job.tuner.weight_bytes(facts, compute)
    states = job.tuner.state_bytes(facts, job.optimizer)
    rest = _resident_bytes(job, facts, compute)
    mode, activations = _activations(job, facts, compute, rest, place.device)
    memory = rest + activations
    lines = {
        "model": f"{job.model}: {facts.family}, {facts.num_layers} layers,"
        f" {facts.num_parameters / 1e9:.2f} B parameters",
        "trained": f"{trained / 1e6:.1f} M parameters ({trained / facts.num_parameters:.2%})"
        f" by {job.tuner.kind} and {job.optimizer.kind}, objective {job.objective.kind}",
        "base": _base(job, place.dtype),
        "device": place.text(memory),
        "memory": f"{_gib(memory)}: weights {_gib(weights)}, gradients and optimiser"
        f" {_gib(states)}{_shared(job, rest)}, activations {_gib(activations)} (estimate)",
        "step": _step(job),
        "packing": "on: documents share rows without padding and do not see one another",
        "activations": f"{mode}: {MODES[mode]}{_tiles(job)}",
        "compiled": "each layer, at its first use" if job.compile else "no (--compile)",
        "schedule": f"{job.epochs:g} epochs, {job.optim.schedule},"
        f" peak rate {job.optim.lr or job.tuner.default_lr:g}",
        "data": f"{', '.join(job.data.dataset)}; validation {job.data.validation}",
        "output": str(job.output),
        "time": _time(job, facts, place, mode),
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
            return f"{has}: THE JOB MAY NOT FIT; lower max_length or batch_size"
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


def choose_mode(job: TrainJob, facts: ModelFacts, device: Device, dtype: str) -> Mode:
    """What a run keeps of its activations: as asked, or the fastest that is predicted to fit.

    Args:
        job: the run.
        facts: its model's shape.
        device: where it runs.
        dtype: what it computes in.
    """
    compute = DTYPE_BYTES[dtype]
    return _activations(job, facts, compute, _resident_bytes(job, facts, compute), device)[0]


def _resident_bytes(job: TrainJob, facts: ModelFacts, compute: int) -> int:
    """Weights, gradients and states that lie on one device, and what is gathered of shards."""
    num = job.gpus * job.nodes
    whole = job.tuner.weight_bytes(facts, compute) + job.tuner.state_bytes(facts, job.optimizer)
    if not job.shards or (num == 1 and not job.offload):
        return whole
    tables = facts.vocab_size * facts.hidden_size * (1 if facts.tied_embeddings else 2)
    layers = facts.num_parameters - tables
    at_once = 1.0 if job.parallel == "zero2" else 2 / facts.num_layers  # one, and the next one
    gathered = int((tables + at_once * layers) * compute)
    return gathered + (0 if job.offload else whole // num)


def _shared(job: TrainJob, on_device: int) -> str:
    if job.offload:
        return f" in the host's memory; gathered {_gib(on_device)}"
    num = job.gpus * job.nodes
    return f" in {num} shards: {_gib(on_device)}" if job.shards and num > 1 else ""


def _activations(
    job: TrainJob, facts: ModelFacts, compute: int, rest: int, device: Device | None
) -> tuple[Mode, int]:
    """The mode, and the bytes of its activations; `rest` is what else lies on the device."""
    tokens = job.batch_size * job.max_length * max(1, job.objective.num_rows)
    needed: dict[Mode, int] = {
        m: needed_bytes(m, tokens, facts, compute, job.mlp_tile) for m in MODES
    }
    if job.activation_checkpointing != "auto":
        return job.activation_checkpointing, needed[job.activation_checkpointing]
    if device is None:
        return "none", needed["none"]
    room = SHARE_OF_MEMORY * device.memory_bytes - rest
    usable: list[Mode] = [m for m in MODES if m != "offload" or device.kind != "cpu"]
    fits: list[Mode] = [mode for mode in usable if needed[mode] <= room]
    chosen = fits[0] if fits else usable[-1]
    return chosen, needed[chosen]


def _time(job: TrainJob, facts: ModelFacts, place: Place, mode: Mode) -> str:
    """Floating-point work of the tokens that the files may hold, at a rate measured just now."""
    paths = [Path(name.partition("#")[0]) for name in job.data.dataset]
    if absent := [str(path) for path in paths if not path.exists()]:
        return f"unknown until the data is here: {', '.join(absent)}"
    if place.device is None:
        return "unknown without the device"
    if job.objective.is_online:
        return "unknown: it depends on how long the answers are"
    tokens = min(sum(map(_bytes_in, paths)) / BYTES_A_TOKEN * job.epochs, _most_tokens(job))
    passes = (6 if job.tuner.saves_model else 4) + 2 * (mode in {"full", "offload"})
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


def _step(job: TrainJob) -> str:
    if isinstance(job.objective, Online) and job.objective.is_online:
        prompts, updates = job.accumulate * job.objective.num_prompts, job.objective.num_iterations
        return f"{prompts} prompts are answered by the model as it is, then {updates} updates"
    row = job.batch_size * job.max_length
    return f"up to {row * job.accumulate:,} tokens: {job.accumulate} packed rows of {row:,}"


def _base(job: TrainJob, dtype: str) -> str:
    if job.tuner.quantization:
        return f"frozen, in 4 bits ({job.tuner.quantization}, double quantisation)"
    return "a part of the trained model" if job.tuner.saves_model else f"frozen, {dtype}"


def _tiles(job: TrainJob) -> str:
    return f"; MLPs take {job.mlp_tile:,} tokens at once" if job.mlp_tile else ""


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
