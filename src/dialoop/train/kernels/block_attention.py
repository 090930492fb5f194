"""Attention of some queries to some keys, documents packed on both sides, and its parts.

Where only a part of the keys is at hand, the output comes with the logarithm of its softmax's
denominator, so that parts can be merged (Milakov and Gimelshein 2018, arXiv:1805.02867), and the
gradient is computed from the merged output and logarithm (Dao 2023, arXiv:2307.08691, algorithm 2).
On CUDA in half precision the flash kernels of torch compute it; elsewhere plain matrix products in
float32, a document at a time.

H is query heads, K key/value heads, G = H / K, t queries, s keys, D the head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Block:
    """Which documents stand on both sides, and whether their ends are one token."""

    query_bounds: tuple[int, ...]
    """Document boundaries, 0 first and t last."""
    key_bounds: tuple[int, ...]
    """Of the same documents, 0 first and s last."""
    is_causal: bool = True
    """The last query of a document is its last key; else every query sees all of its keys."""


def attend(query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float | None) -> Tensor:
    """Attention with its gradient.

    Args:
        query: (H, t, D).
        key: (K, s, D).
        value: (K, s, D).
        block: the documents.
        scale: factor of the scores; 1/sqrt(D) when None.

    Returns:
        (H, t, D).
    """
    function: Any = _Attend.apply
    return function(query, key, value, block, scale)


def forward(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The output (H, t, D) and the log of the softmax's denominator (H, t), float32."""
    if _has_flash(query):
        return _flash_forward(query, key, value, block, scale)
    out = torch.zeros_like(query)
    lse = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
    for q, k in _documents(block):
        scores = _scores(query[:, q], key[:, k], block, scale)  # (K, G, t, s)
        found = scores.logsumexp(-1)  # (K, G, t)
        lse[:, q] = found.flatten(0, 1)
        mixed = (scores - found[..., None]).exp() @ value[:, None, k].float()  # (K, G, t, D)
        out[:, q] = mixed.flatten(0, 1).to(out.dtype)
    return out, lse


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    block: Block,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """This block's part of the gradients of query, key and value.

    Args:
        grad: (H, t, D) of the output.
        query: (H, t, D).
        key: (K, s, D).
        value: (K, s, D).
        out: (H, t, D) the output over all keys, not only this block's.
        lse: (H, t) float32, likewise.
        block: the documents.
        scale: factor of the scores; 1/sqrt(D) when None.
    """
    if _has_flash(query):
        return _flash_backward(grad, query, key, value, out, lse, block, scale)
    factor = scale or query.shape[-1] ** -0.5
    groups = (key.shape[0], -1)
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value))
    delta = (grad.float() * out.float()).sum(-1)  # (H, t)
    for q, k in _documents(block):
        d_out = grad[:, q].float().unflatten(0, groups)  # (K, G, t, D)
        scores = _scores(query[:, q], key[:, k], block, scale)  # (K, G, t, s)
        weights = (scores - lse[:, q].unflatten(0, groups)[..., None]).exp()
        errors = d_out @ value[:, None, k].float().mT - delta[:, q].unflatten(0, groups)[..., None]
        errors = weights * errors * factor  # (K, G, t, s)
        dq[:, q] = (errors @ key[:, None, k].float()).flatten(0, 1)
        dk[:, k] = (errors.mT @ query[:, q].float().unflatten(0, groups)).sum(1)
        dv[:, k] = (weights.mT @ d_out).sum(1)
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


class _Attend(Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float | None
    ) -> Tensor:
        out, lse = forward(query, key, value, block, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.block, ctx.scale = block, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        parts = backward(grads[0], query, key, value, out, lse, ctx.block, ctx.scale)
        return *parts, None, None


def _documents(block: Block) -> Iterator[tuple[slice, slice]]:
    for (a, b), (c, d) in zip(
        pairwise(block.query_bounds), pairwise(block.key_bounds), strict=True
    ):
        yield slice(a, b), slice(c, d)


def _scores(query: Tensor, key: Tensor, block: Block, scale: float | None) -> Tensor:
    """(K, G, t, s) float32, with what may not be seen at minus infinity."""
    factor = scale or query.shape[-1] ** -0.5
    grouped = query.float().unflatten(0, (key.shape[0], -1))  # (K, G, t, D)
    scores = grouped @ key[:, None].float().mT * factor
    if not block.is_causal:
        return scores
    t, s = scores.shape[-2:]
    hidden = torch.ones(t, s, dtype=torch.bool, device=scores.device).triu(s - t + 1)
    return scores.masked_fill(hidden, -torch.inf)


def _has_flash(query: Tensor) -> bool:
    return query.is_cuda and query.dtype != torch.float32


@lru_cache(maxsize=256)
def _on_device(bounds: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Bounds as int32 on the device, and the longest document."""
    longest = max(b - a for a, b in pairwise(bounds))
    return torch.tensor(bounds, dtype=torch.int32, device=device), longest


def _flash_forward(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float | None
) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(0, 1).contiguous() for x in (query, key, value))  # (t, H, D)
    cu_q, longest_q = _on_device(block.query_bounds, query.device)
    cu_k, longest_k = _on_device(block.key_bounds, query.device)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - returns the lse
        q, k, v, cu_q, cu_k, longest_q, longest_k, 0.0, block.is_causal, False, scale=scale
    )
    return out.transpose(0, 1), lse


def _flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    block: Block,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (grad, query, key, value, out)
    d, q, k, v, o = (x.transpose(0, 1).contiguous() for x in tensors)  # (t, H, D)
    cu_q, longest_q = _on_device(block.query_bounds, query.device)
    cu_k, longest_k = _on_device(block.key_bounds, query.device)
    unused = torch.zeros(2, dtype=torch.uint64, device=query.device)
    grads = torch.ops.aten._flash_attention_backward(  # noqa: SLF001 - takes any lse
        d, q, k, v, o, lse.contiguous(), cu_q, cu_k, longest_q, longest_k, 0.0, block.is_causal,
        unused, unused, scale=scale,
    )  # fmt: skip
    dq, dk, dv = (g.transpose(0, 1) for g in grads)
    return dq, dk, dv
