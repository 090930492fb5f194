"""All-to-all between a split by tokens and a split by heads.

Source: DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509, section 3. Heads need not divide
by the ranks; where key/value heads are fewer than ranks, each goes to all ranks that have a query
head of its group, and the gradient sums over them.

H is query heads, K key/value heads, G = H / K, T the tokens of the group, t this rank's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from dialoop.train.parallel.collectives import exchange

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.train.parallel.mesh import Axis

Range = tuple[int, int]


def head_ranges(num_heads: int, num_kv_heads: int, size: int) -> list[tuple[Range, Range]]:
    """The query heads of each rank, at least one, and the key/value heads that they read."""
    assert num_heads >= size, "choose_method refuses fewer heads than ranks"  # noqa: S101
    groups = num_heads // num_kv_heads
    cuts = [num_heads * i // size for i in range(size + 1)]
    return [
        ((low, high), (low // groups, (high - 1) // groups + 1)) for low, high in pairwise(cuts)
    ]


def to_heads(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], axis: Axis
) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens of the group for this rank's heads.

    Args:
        query: (H, t, D).
        key: (K, t, D).
        value: (K, t, D).
        lengths: t of each rank.
        axis: the ranks.

    Returns:
        (h, T, D) and twice (k, T, D), where k divides h.
    """
    width = query.shape[-1]
    ranges = head_ranges(query.shape[0], key.shape[0], axis.size)
    parts = [torch.cat([query[slice(*q)], key[slice(*k)], value[slice(*k)]]) for q, k in ranges]
    mine, read = ranges[axis.rank]
    h, k = mine[1] - mine[0], read[1] - read[0]
    received = exchange(parts, [(h + 2 * k, n, width) for n in lengths], axis.group)
    q, keys, values = torch.cat(received, dim=1).split([h, k, k])  # (h, T, D), (k, T, D) twice
    groups = query.shape[0] // key.shape[0]
    if h == k * groups or k == 1:
        return q, keys, values
    owners = [head // groups - read[0] for head in range(*mine)]
    keys, values = (torch.stack([x[owner] for owner in owners]) for x in (keys, values))
    return q, keys, values


def to_tokens(out: Tensor, num_heads: int, lengths: list[int], axis: Axis) -> Tensor:
    """All heads for this rank's tokens: (h, T, D) to (H, t, D)."""
    mine = lengths[axis.rank]
    cuts = [num_heads * i // axis.size for i in range(axis.size + 1)]
    shapes = [(b - a, mine, out.shape[-1]) for a, b in pairwise(cuts)]
    return torch.cat(exchange(out.split(lengths, dim=1), shapes, axis.group))
