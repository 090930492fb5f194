"""Ranks laid out as data x sequence, the sequence axis as ring x Ulysses; process groups.

Neighbouring ranks share a sequence, and of these the innermost share heads: what communicates most
is closest, on one node where that is possible. Rank = (data * R + ring) * U + ulysses.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dialoop.core import env

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch.distributed import ProcessGroup

    from dialoop.core.device import DeviceKind

BACKENDS: dict[DeviceKind, str] = {"cuda": "cpu:gloo,cuda:nccl", "npu": "hccl", "cpu": "gloo"}
TIMEOUT = timedelta(minutes=30)
"""How long a collective waits: rank 0 may tokenise a large data set while the others do so."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The ranks of one axis that this rank belongs to."""

    rank: int
    """This rank's place on the axis."""
    size: int
    group: ProcessGroup


@dataclass(frozen=True, slots=True)
class SequenceRanks:
    """The ranks that share each packed row."""

    whole: Axis
    ulysses: Axis
    ring: Axis


@dataclass(frozen=True, slots=True)
class Mesh:
    """Where this rank is among all."""

    rank: int
    size: int
    group: ProcessGroup
    """All ranks."""
    data: Axis
    """The ranks that hold the same part of other rows."""
    sequence: SequenceRanks | None
    """None when each rank computes whole rows."""


@contextmanager
def joined(kind: DeviceKind, index: int = 0) -> Generator[None]:
    """Meet the other ranks that the environment names, if any, and part from them at the end.

    Args:
        kind: of the devices.
        index: of this rank's device.
    """
    if dist.is_initialized():  # by a program that runs several jobs; it ends what it began
        yield
        return
    place: dict[str, Any] = {}
    if kind != "cpu":
        place |= {"device_id": torch.device(kind, index)}
        torch.accelerator.set_device_index(index)  # where meshes put their tensors
    if env.world_size() == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage] - documented
        place |= {"store": store, "rank": 0, "world_size": 1}
    dist.init_process_group(BACKENDS[kind], timeout=TIMEOUT, **place)
    try:
        yield
    finally:
        dist.destroy_process_group()


def layout(sequence: int = 1, ulysses: int = 1) -> Mesh:
    """Lay all ranks out; every rank calls this, since it makes process groups.

    Args:
        sequence: ranks that share a row; divides the number of ranks.
        ulysses: of these, the ranks that share heads; divides `sequence`.
    """
    size, rank = dist.get_world_size(), dist.get_rank()
    everyone = list(range(size))
    if sequence == 1:
        whole = Axis(rank, size, _group([everyone]))
        return Mesh(rank, size, whole.group, whole, None)
    rows = [everyone[i : i + sequence] for i in range(0, size, sequence)]
    near = [row[i : i + ulysses] for row in rows for i in range(0, sequence, ulysses)]
    far = [row[i::ulysses] for row in rows for i in range(ulysses)]
    columns = [everyone[i::sequence] for i in range(sequence)]
    shared = SequenceRanks(whole=_axis(rows), ulysses=_axis(near), ring=_axis(far))
    return Mesh(rank, size, _group([everyone]), _axis(columns), shared)


def _axis(groups: Sequence[list[int]]) -> Axis:
    rank = dist.get_rank()
    mine = next(ranks for ranks in groups if rank in ranks)
    return Axis(mine.index(rank), len(mine), _group(groups))


def _group(groups: Sequence[list[int]]) -> ProcessGroup:
    """This rank's group of several that do not overlap."""
    group: Any = dist.new_subgroups_by_enumeration([list(ranks) for ranks in groups])[0]
    return group
