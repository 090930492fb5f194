"""Attention over a packed row: every document attends to itself alone.

Registered with transformers under one name through its attention interface. On CUDA the variable-
length kernel of torch is used; what it does not take (float32, dropout, windows) and other
accelerators get documents of similar length side by side. On the CPU each document is one call of
SDPA, which does no work on the masked part at all.

T is the tokens of a packed row, H the query heads, K the key/value heads, D the head's width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from dialoop.models.padded_attention import padded_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

NAME = "dialoop_packed"


def register(function: Callable[..., Any] | None = None) -> None:
    """Make the attention known to transformers; safe to call again.

    No mask function is registered under this name, so transformers builds no mask for it.

    Args:
        function: what computes it; `packed_attention` when None.
    """
    from transformers import AttentionInterface  # noqa: PLC0415 - only loops that train need it

    AttentionInterface.register(NAME, function or packed_attention)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    bounds: tuple[int, ...],
    cu_seqlens: Tensor,
    max_seqlen: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    shared: Callable[..., Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within documents, causal unless the layer's `is_causal` says otherwise.

    Args:
        module: the attention layer.
        query: (1, H, T, D).
        key: (1, K, T, D).
        value: (1, K, T, D).
        attention_mask: always None; the bounds say everything.
        bounds: document boundaries on the host, 0 first and T last.
        cu_seqlens: the same on the device, int32.
        max_seqlen: tokens of the longest document.
        scaling: factor of the scores; 1/sqrt(D) when None.
        dropout: share of the attention weights dropped.
        sliding_window: tokens that a token may look back, where the model limits it.
        shared: computes it where several ranks hold the row, from this rank's tokens.
        kwargs: what else transformers hands to attention functions.

    Returns:
        (1, T, H, D), and None for the attention weights.
    """
    del attention_mask, kwargs
    is_causal = getattr(module, "is_causal", True)
    is_windowed = sliding_window is not None and sliding_window < max_seqlen
    if shared is not None:
        return shared(query, key, value, scaling, dropout=dropout, is_windowed=is_windowed), None
    if query.is_cuda and not dropout and not is_windowed and query.dtype != torch.float32:
        return _varlen(query, key, value, cu_seqlens, max_seqlen, scaling, is_causal), None
    window = sliding_window if is_windowed else None
    if query.device.type != "cpu":
        out = padded_attention(
            query, key, value, bounds, scale=scaling, dropout=dropout, window=window,
            is_causal=is_causal,
        )  # fmt: skip
        return out, None
    lengths = [end - start for start, end in pairwise(bounds)]
    documents = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = [_one_document(q, k, v, scaling, dropout, window, is_causal) for q, k, v in documents]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None  # each part (1, H, t, D)


def _one_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    is_causal: bool,
) -> Tensor:
    mask = None
    if window is not None:
        length = query.shape[2]
        age = torch.arange(length, device=query.device)
        age = age[:, None] - age[None, :]
        mask = (age >= 0) & (age < window) if is_causal else age.abs() < window
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal and mask is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float | None,
    is_causal: bool,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - needs torch 2.10, CUDA

    groups = query.shape[1] // key.shape[1]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H or K, D)
    if groups > 1:  # grouped heads are an argument only from torch 2.13; 2.11 lacks it
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))  # (T, H, D)
    window = (-1, 0 if is_causal else -1)
    out: Any = varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=window
    )  # fmt: skip
    return out.unsqueeze(0)
