"""Collectives that gradients flow through, for tokens split unevenly over ranks.

The loss of a step is the sum of what all ranks return, so the gradient of a value that went to
several ranks is the sum of theirs. Sums are taken in rank order and in float32: the same ranks give
the same bits.

H is heads, T the tokens of all ranks, t those of one, D the head's width.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed import ProcessGroup

    from dialoop.train.parallel.spans import Span


def sum_over_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of every rank's `x`, on every rank; any shape, the same on all.

    What each rank makes of the sum must be its own share of the step's loss.
    """
    function: Any = _Sum.apply
    return function(x, group)


def gather_tokens(x: Tensor, lengths: Sequence[int], group: ProcessGroup) -> Tensor:
    """Every rank's tokens, in rank order.

    Args:
        x: (N, t, D) with this rank's tokens in dim 1.
        lengths: t of each rank of the group.
        group: the ranks.

    Returns:
        (N, T, D).
    """
    function: Any = _Gather.apply
    return function(x, tuple(lengths), group)


def exchange(
    parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], group: ProcessGroup
) -> list[Tensor]:
    """All-to-all of tensors of any sizes.

    Args:
        parts: what goes to each rank of the group.
        shapes: of what comes from each rank.
        group: the ranks.

    Returns:
        What came from each rank.
    """
    sent = torch.cat([part.reshape(-1) for part in parts])
    sizes = [part.numel() for part in parts]
    expected = [math.prod(shape) for shape in shapes]
    received: Any = _Exchange.apply(sent, sizes, expected, group)
    pieces = zip(received.split(expected), shapes, strict=True)
    return [piece.view(shape) for piece, shape in pieces]


def reorder(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """Tokens that lie as `spans` follow one another, in the order of the row.

    Args:
        x: (N, T, D).
        spans: which together are the row 0..T, each once.
    """
    starts = [0, *accumulate(stop - start for start, stop in spans)]
    order = sorted(range(len(spans)), key=lambda i: spans[i])
    return torch.cat([x[:, starts[i] : starts[i + 1]] for i in order], dim=1)  # (N, T, D)


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _summed(grads[0], ctx.group), None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: tuple[int, ...], group: ProcessGroup) -> Tensor:
        ctx.lengths, ctx.group = lengths, group
        longest = max(lengths)
        mine = x.new_zeros(x.shape[0], longest, x.shape[2])  # all-gather wants equal parts
        mine[:, : x.shape[1]] = x
        everyone = x.new_empty(len(lengths), *mine.shape)
        dist.all_gather(list(everyone), mine, group=group)
        return torch.cat([everyone[r, :, :n] for r, n in enumerate(lengths)], dim=1)  # (N, T, D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Reduce-scatter: each rank sums what all have for its own tokens."""
        (grad,) = grads
        mine = ctx.lengths[dist.get_rank(ctx.group)]
        parts = [part.reshape(-1) for part in grad.split(ctx.lengths, dim=1)]
        sizes = [part.numel() for part in parts]
        shape = (len(ctx.lengths), grad.shape[0], mine, grad.shape[2])
        received = grad.new_empty(shape)
        each = [received[0].numel()] * len(ctx.lengths)
        dist.all_to_all_single(received.view(-1), torch.cat(parts), each, sizes, group=ctx.group)
        return received.sum(dim=0, dtype=torch.float32).to(grad.dtype), None, None  # (N, t, D)


class _Exchange(Function):
    @staticmethod
    def forward(
        ctx: Any, sent: Tensor, sizes: list[int], expected: list[int], group: ProcessGroup
    ) -> Tensor:
        ctx.sizes, ctx.expected, ctx.group = sizes, expected, group
        return _exchanged(sent, sizes, expected, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = _exchanged(grads[0].contiguous(), ctx.expected, ctx.sizes, ctx.group)
        return grad, None, None, None


def _summed(x: Tensor, group: ProcessGroup) -> Tensor:
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def _exchanged(sent: Tensor, sizes: list[int], expected: list[int], group: ProcessGroup) -> Tensor:
    received = sent.new_empty(sum(expected))
    dist.all_to_all_single(received, sent, expected, sizes, group=group)
    return received
