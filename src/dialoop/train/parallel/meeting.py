"""How the ranks of a job meet, and how they are laid out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.distributed as dist

from dialoop.core import env
from dialoop.core.errors import UserError
from dialoop.models.heads import ENCODERS
from dialoop.train.parallel import mesh as meshes
from dialoop.train.parallel.methods import METHODS, choose, ulysses_size
from dialoop.train.parallel.shared_row import SharedRows
from dialoop.train.parallel.team import Team

if TYPE_CHECKING:
    from collections.abc import Generator

    from transformers import PretrainedConfig

    from dialoop.core.device import Device
    from dialoop.train.spec import TrainJob


@contextmanager
def gathered(job: TrainJob, device: Device) -> Generator[None]:
    """Meet the job's other ranks, where it has any.

    Raises:
        UserError: the ranks cannot be laid out as asked.
    """
    size = env.world_size()
    if size % job.sequence_parallel:
        raise UserError(
            f"sequence_parallel {job.sequence_parallel} does not divide {size} ranks",
            hint="start as many with --gpus, or use a divisor",
        )
    if job.offload and device.kind == "cpu":
        raise UserError(
            "offload: the job computes on the CPU, where everything lies already",
            hint="leave --offload out, or name an accelerator by --device",
        )
    if size == 1 and job.parallel not in {"auto", "ddp"} and not job.offload:
        raise UserError(
            "parallel: one process has nothing to share a model with",
            hint="start several with --gpus, use --offload, or leave --parallel out",
        )
    if size == 1 and not job.offload:
        yield
        return
    with meshes.joined(device.kind, device.index):
        yield


@contextmanager
def leader_first() -> Generator[None]:
    """Rank 0 does it, then the others, who find what it left in the cache."""
    if env.world_size() == 1:
        yield
        return
    if env.rank() != 0:
        dist.barrier()
    yield
    if env.rank() == 0:
        dist.barrier()


def lay_out(job: TrainJob, config: PretrainedConfig, device: Device) -> Team:
    """The team of a job whose ranks have met.

    Args:
        job: what was asked.
        config: of the model; its heads decide the form of sequence parallelism.
        device: of this rank.
    """
    if env.world_size() == 1 and not job.offload:
        return Team()
    size = job.sequence_parallel
    if size == 1:
        return Team(meshes.layout())
    if config.model_type in ENCODERS:
        raise UserError(
            f"sequence_parallel needs a causal model, and {config.model_type} looks both ways",
            hint="use --sequence_parallel 1",
        )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    kind = job.sequence_method
    if kind == "auto":
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        row_bytes = 2 * kv_heads * width * 2 * job.max_length * job.batch_size
        kind = choose(size, heads, kv_heads, row_bytes, device.memory_bytes)
    mesh = meshes.layout(size, ulysses_size(kind, size, heads))
    assert mesh.sequence is not None, "size is above 1"  # noqa: S101
    return Team(mesh, SharedRows(kind, METHODS[kind](), mesh.sequence))
