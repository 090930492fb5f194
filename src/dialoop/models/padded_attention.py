"""Attention of many short documents at once: those of similar length side by side, filled up.

For devices where a kernel costs more to start than to run, and cases that the variable-length
kernel does not take. Documents are grouped by the power of two that holds them, so that less than
half of a group is filling; filled places are never seen by others and never returned.

T is the tokens of a packed row, H the query heads, K the key/value heads, D the head's width, S the
documents of a group and L its longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: tuple[int, ...],
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    is_causal: bool = True,
) -> Tensor:
    """Attention within documents.

    Args:
        query: (1, H, T, D).
        key: (1, K, T, D).
        value: (1, K, T, D).
        bounds: document boundaries, 0 first and T last.
        scale: factor of the scores; 1/sqrt(D) when None.
        dropout: share of the attention weights dropped.
        window: tokens that a token may look back, and forward where it may.
        is_causal: whether a token sees no later one.

    Returns:
        (1, T, H, D).
    """
    groups, back = _groups(bounds, query.device)
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # (T, H or K, D)
    found: list[Tensor] = []
    for group in groups:
        q, k, v = (x[group.places].transpose(1, 2) for x in rows)  # (S, H or K, L, D)
        mask = group.mask(window, is_causal=is_causal)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=is_causal and mask is None,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        found.append(out.transpose(1, 2).flatten(0, 1)[group.real])
    return torch.cat(found)[back][None]


@dataclass(frozen=True, slots=True)
class _Group:
    places: Tensor
    """(S, L) int64, the tokens of each document; its last one again where it is filled up."""
    real: Tensor
    """(n,) int64, the places of the S * L that are no filling."""
    lengths: Tensor
    """(S,) int64."""

    def mask(self, window: int | None, *, is_causal: bool) -> Tensor | None:
        """What each token may see: (S or 1, 1, L or 1, L); None where causality says it all."""
        if is_causal and window is None:
            return None  # the filling comes last, so that no real token sees it
        ages = torch.arange(self.places.shape[1], device=self.places.device)
        known = (ages[None, :] < self.lengths[:, None])[:, None, None]  # (S, 1, 1, L)
        if window is None:
            return known
        age = ages[:, None] - ages[None, :]
        near = (age >= 0) & (age < window) if is_causal else age.abs() < window
        return known & near | torch.eye(len(ages), dtype=torch.bool, device=ages.device)


@lru_cache(maxsize=16)
def _groups(bounds: tuple[int, ...], device: torch.device) -> tuple[list[_Group], Tensor]:
    """Documents by size, and (T,) where each token of the row is among their real places."""
    by_size: dict[int, list[tuple[int, int]]] = {}
    for start, end in pairwise(bounds):
        by_size.setdefault((end - start - 1).bit_length(), []).append((start, end - start))
    groups: list[_Group] = []
    order: list[Tensor] = []
    for documents in by_size.values():
        starts, lengths = torch.tensor(documents).T  # (S,) each
        ages = torch.arange(int(lengths.max()))
        is_real = ages < lengths[:, None]  # (S, L)
        places = starts[:, None] + torch.minimum(ages, lengths[:, None] - 1)
        order.append(places[is_real])
        real = is_real.flatten().nonzero()[:, 0]
        groups.append(_Group(places.to(device), real.to(device), lengths.to(device)))
    back = torch.cat(order).argsort()
    return groups, back.to(device)
