"""What a job would do, told before it does it: parameters, memory, what is on and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.models.facts import facts_of
from dialoop.train.spec import TrainPlan

if TYPE_CHECKING:
    from dialoop.models.spec import ModelFacts
    from dialoop.train.spec import TrainJob


def plan(job: TrainJob) -> TrainPlan:
    """Predict a job from the model's shape; the weights need not be on this machine.

    Memory is weights + gradients and AdamW's two moments of what is trained (12 bytes each) +
    activations kept for the backward pass. The last is an estimate: per token and layer about 16
    widths and 4 MLP widths in the compute type, one width with activation checkpointing.

    Raises:
        UserError: the model's name is unknown.
    """
    facts = facts_of(job.model)
    compute = 4 if job.dtype == "fp32" else 2
    trained = job.tuner.num_trained(facts)
    weights, states = job.tuner.weight_bytes(facts, compute), 12 * trained
    activations = _activation_bytes(job, facts, compute)
    memory = weights + states + activations
    peak = job.optim.lr or job.tuner.default_lr
    row = job.batch_size * job.max_length
    lines = (
        f"model       {job.model}: {facts.family}, {facts.num_layers} layers,"
        f" {facts.num_parameters / 1e9:.2f} B parameters",
        f"trained     {trained / 1e6:.1f} M parameters ({trained / facts.num_parameters:.2%})"
        f" by {job.tuner.kind}, objective {job.objective.kind}",
        f"memory      {_gib(memory)}: weights {_gib(weights)}, gradients and optimiser"
        f" {_gib(states)}, activations {_gib(activations)} (estimate)",
        f"step        up to {row * job.accumulate:,} tokens: {job.accumulate} packed rows of"
        f" {row:,}; no padding",
        f"schedule    {job.epochs:g} epochs, {job.optim.schedule}, peak rate {peak:g}",
        "packing     on: documents share rows and do not see one another",
        f"checkpointing of activations  {_switch(job)}",
        f"base        {_base(job)}",
        f"data        {', '.join(job.data.dataset)}; validation {job.data.validation}",
        f"output      {job.output}",
        "time        told after the first steps: it depends on the machine and the data's length",
    )
    return TrainPlan(
        lines=lines,
        memory_bytes=memory,
        trained_parameters=trained,
        total_parameters=facts.num_parameters,
    )


def _activation_bytes(job: TrainJob, facts: ModelFacts, compute: int) -> int:
    per_layer = facts.hidden_size
    if not job.activation_checkpointing:
        per_layer = 16 * facts.hidden_size + 4 * facts.intermediate_size
    return job.batch_size * job.max_length * facts.num_layers * per_layer * compute


def _switch(job: TrainJob) -> str:
    if job.activation_checkpointing:
        return "on, as asked: recomputed in the backward pass"
    return "off: faster; --activation_checkpointing saves memory"


def _base(job: TrainJob) -> str:
    if job.tuner.quantization:
        return f"frozen, in 4 bits ({job.tuner.quantization}, double quantisation)"
    return "trained in float32" if job.tuner.kind == "full" else f"frozen, {job.dtype}"


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
