"""Attention while keys and values travel round a ring of ranks, forward and backward.

Partial outputs are merged by their log denominators in float32. In the backward pass the gradients
of keys and values travel along with them and come home after a full round. Source: Ring Attention,
Liu et al. 2023, arXiv:2310.01889; the zigzag split that gives all ranks the same causal work is
described at `spans.zigzag`.

H is query heads, K key/value heads, t this rank's tokens, s those of the rank whose keys are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from dialoop.train.kernels import block_attention
from dialoop.train.kernels.block_attention import Block
from dialoop.train.parallel import spans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dialoop.train.parallel.mesh import Axis
    from dialoop.train.parallel.spans import Spans


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: tuple[int, ...],
    held: list[Spans],
    axis: Axis,
    scale: float | None,
) -> Tensor:
    """Causal attention within documents.

    Args:
        query: (H, t, D) of this rank's tokens.
        key: (K, t, D).
        value: (K, t, D).
        bounds: document boundaries of the whole row.
        held: the tokens of each rank of the ring.
        axis: the ring.
        scale: factor of the scores; 1/sqrt(D) when None.

    Returns:
        (H, t, D).
    """
    function: Any = _Ring.apply
    return function(query, torch.cat([key, value]), bounds, held, axis, scale)


class _Ring(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        both: Tensor,
        bounds: tuple[int, ...],
        held: list[Spans],
        axis: Axis,
        scale: float | None,
    ) -> Tensor:
        out = torch.zeros_like(query, dtype=torch.float32)
        lse = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
        here = both.contiguous()
        for turn in range(axis.size):
            owner = (axis.rank - turn) % axis.size
            coming = _Transfer(here, held, owner, axis) if turn + 1 < axis.size else None
            k, v = here.chunk(2)
            for q, keys, block in _blocks(held[axis.rank], held[owner], bounds):
                part = block_attention.forward(query[:, q], k[:, keys], v[:, keys], block, scale)
                _merge(out[:, q], lse[:, q], *part)
            here = coming.wait() if coming else here
        result = out.to(query.dtype)
        ctx.save_for_backward(query, both, result, lse)
        ctx.facts = bounds, held, axis, scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, both, out, lse = ctx.saved_tensors
        bounds, held, axis, scale = ctx.facts
        grad = grads[0].contiguous()
        d_query = torch.zeros_like(query, dtype=torch.float32)
        here, d_here = both.contiguous(), torch.zeros_like(both, dtype=torch.float32)
        for turn in range(axis.size):
            owner = (axis.rank - turn) % axis.size
            coming = _Transfer(here, held, owner, axis) if turn + 1 < axis.size else None
            (k, v), (dk, dv) = here.chunk(2), d_here.chunk(2)
            for q, keys, block in _blocks(held[axis.rank], held[owner], bounds):
                parts = block_attention.backward(
                    grad[:, q], query[:, q], k[:, keys], v[:, keys], out[:, q], lse[:, q],
                    block, scale,
                )  # fmt: skip
                sums = (d_query[:, q], dk[:, keys], dv[:, keys])
                for total, part in zip(sums, parts, strict=True):
                    total += part
            d_here = _Transfer(d_here, held, owner, axis).wait()
            here = coming.wait() if coming else here
        return d_query.to(query.dtype), d_here.to(both.dtype), None, None, None, None


class _Transfer:
    """Hands a rank's tensor to the next of the ring and takes the one before's.

    Args:
        leaving: (N, s, D), the tokens of `owner`.
        held: the tokens of each rank.
        owner: whose tokens are leaving.
        axis: the ring.
    """

    def __init__(self, leaving: Tensor, held: list[Spans], owner: int, axis: Axis) -> None:
        num_tokens = spans.length(held[(owner - 1) % axis.size])
        self._coming = leaving.new_empty(leaving.shape[0], num_tokens, leaving.shape[2])
        self._leaving = leaving
        after = dist.get_global_rank(axis.group, (axis.rank + 1) % axis.size)
        before = dist.get_global_rank(axis.group, (axis.rank - 1) % axis.size)
        moves = [(dist.isend, leaving, after), (dist.irecv, self._coming, before)]
        wanted = [dist.P2POp(do, x, peer, axis.group) for do, x, peer in moves if x.numel()]
        self._works = dist.batch_isend_irecv(wanted) if wanted else []

    def wait(self) -> Tensor:
        """What came."""
        for work in self._works:
            work.wait()
        return self._coming


def _blocks(
    mine: Spans, theirs: Spans, bounds: tuple[int, ...]
) -> Iterator[tuple[slice, slice, Block]]:
    """Which of this rank's queries meet which of the owner's keys, as places on each rank."""
    for queries, q_place in spans.places(mine):
        for keys, k_place in spans.places(theirs):
            if queries == keys and queries[0] < queries[1]:
                inner = spans.window(queries, bounds).query_bounds
                yield slice(*q_place), slice(*k_place), Block(inner, inner)
            elif keys[1] <= queries[0] and (met := spans.crossing(queries, keys, bounds)):
                (a, b), (c, d) = met
                q_shift, k_shift = q_place[0] - queries[0], k_place[0] - keys[0]
                block = Block((0, b - a), (0, d - c), is_causal=False)
                yield slice(a + q_shift, b + q_shift), slice(c + k_shift, d + k_shift), block


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add a part to what there is, in place; both are normalised by their own denominators."""
    total = torch.logaddexp(lse, part_lse)  # (H, t)
    out *= (lse - total).exp()[..., None]
    out += (part_lse - total).exp()[..., None] * part.float()
    lse.copy_(total)
