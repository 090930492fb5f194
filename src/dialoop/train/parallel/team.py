"""What the loop asks of the ranks: which micro-batches are mine, and the sums over all.

The loss of a step is the sum of what all ranks return, and so are its gradients. They are added up
once a step, in flat buckets of fixed order: any objective works, with passes without gradient, any
number of forward passes and parameters that a step did not use, and the same ranks give the same
bits. A job without other ranks has a team of one, for which everything here does nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from dialoop.train.parallel.mesh import Mesh
    from dialoop.train.parallel.shared_row import SharedRows

A = TypeVar("A")
B = TypeVar("B")

BUCKET_BYTES = 64 * 2**20
"""Gradients that are added up together."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A micro-batch that this rank computes."""

    index: int
    """Which of the step's."""
    is_idle: bool
    """Whether it only keeps step with other ranks, and counts nothing."""


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks of a job."""

    mesh: Mesh | None = None
    rows: SharedRows | None = None
    """How each packed row is shared; None where ranks compute whole rows."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank writes and reports."""
        return self.mesh is None or self.mesh.rank == 0

    @property
    def num_parts(self) -> int:
        """Micro-batches that are computed at once."""
        return 1 if self.mesh is None else self.mesh.data.size

    def deal(self, count: int) -> Iterator[Turn]:
        """This rank's turns at a step of `count` micro-batches; every rank has as many."""
        place, size = (0, 1) if self.mesh is None else (self.mesh.data.rank, self.mesh.data.size)
        for turn in range(math.ceil(count / size)):
            index = turn * size + place
            yield Turn(index, False) if index < count else Turn(0, True)

    def share(self, turn: Turn) -> float:
        """What a rank's loss counts: ranks of one row compute the same one."""
        if turn.is_idle:
            return 0.0
        return 1.0 if self.rows is None else 1 / self.rows.ranks.whole.size

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by the sum of all ranks'; none stays none where no rank has one."""
        if self.mesh is None:
            return
        moving = list(parameters)
        device = moving[0].device
        used = torch.tensor([p.grad is not None for p in moving], dtype=torch.int32, device=device)
        dist.all_reduce(used, group=self.mesh.group)
        wanted = [p for p, count in zip(moving, used.tolist(), strict=True) if count]
        for bucket in _buckets(wanted):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([part.reshape(-1) for part in parts])
            dist.all_reduce(flat, group=self.mesh.group)
            sums = flat.split([p.numel() for p in bucket])
            for parameter, total in zip(bucket, sums, strict=True):
                parameter.grad = total.view_as(parameter)

    def sum_totals(self, totals: dict[str, Tensor]) -> dict[str, float]:
        """Numbers by name, summed over the ranks; every rank has the same names."""
        names = sorted(totals)
        values = torch.stack([totals[name].detach().float() for name in names])
        if self.mesh is not None:
            dist.all_reduce(values, group=self.mesh.group)
        found = dict(zip(names, values.tolist(), strict=True))
        return {name: found[name] for name in totals}

    def assemble(self, parts: dict[int, Tensor], sizes: list[int]) -> Tensor:
        """What each micro-batch of a step gave, one after another.

        Args:
            parts: (size, ...) of this rank's micro-batches, by index.
            sizes: of every micro-batch of the step.

        Returns:
            (sum of sizes, ...).
        """
        example = next(iter(parts.values()))
        whole = example.new_zeros(sum(sizes), *example.shape[1:])
        places = whole.split(sizes)
        for index, part in parts.items():
            if index >= 0:
                places[index].copy_(part)
        if self.mesh is not None:
            dist.all_reduce(whole, group=self.mesh.data.group)
        return whole

    def spread(self, items: Sequence[A], work: Callable[[Sequence[A]], list[B]]) -> list[B]:
        """What work makes of items, in order and on every rank, though each does only its part.

        Args:
            items: the same on all ranks.
            work: makes one result of each item that it gets, which may be none. Results are
                pickled and sent to all ranks.
        """
        if self.mesh is None:
            return work(items)
        size = self.mesh.size
        parts: list[list[B]] = [[] for _ in range(size)]
        dist.all_gather_object(parts, work(items[self.mesh.rank :: size]), group=self.mesh.group)
        return [parts[n % size][n // size] for n in range(len(items))]

    def seed(self, seed: int, step: int) -> None:
        """Draw other random numbers than the ranks with other rows do, whatever their number was.

        A job without other ranks goes on with its own stream.
        """
        if self.mesh is not None:
            torch.manual_seed(hash((seed, step, self.mesh.data.rank)) % 2**63)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.mesh is not None:
            dist.barrier(self.mesh.group)

    def agree(self, mine: bool) -> bool:
        """The leader's answer, on every rank."""
        answers: list[bool | None] = [mine]
        if self.mesh is not None:
            dist.broadcast_object_list(answers, src=0, group=self.mesh.group)
        return bool(answers[0])


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of parameters of one type, none much above the limit."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if bucket and (size > BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
