"""Negative log-likelihood of chosen tokens from hidden states; the logits are never whole.

The rows of each token are independent: d nll_i / d h_i = (softmax(h_i W^T) - q_i) W, where q_i is
the target, smoothed over the vocabulary if wanted. With a frozen
head the forward pass can therefore compute this gradient chunk by chunk while the logits are at
hand, and the backward pass only scales row i by the gradient that comes in for nll_i. That holds
for every objective, whatever it does with the values. A head that is trained is recomputed in the
backward pass.

N is the labelled rows, D the model's width, V the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

CHUNK_ROWS = 4096
"""Rows a chunk: its float32 logits take CHUNK_ROWS * V * 4 bytes."""


def token_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    chunk: int = CHUNK_ROWS,
) -> Tensor:
    """-log p(target) for each row; the cross-entropy with the smoothed target where asked.

    Args:
        hidden: (N, D), the states that predict the targets.
        weight: (V, D), the output head.
        targets: (N,) int64 token ids.
        smoothing: share of the target's probability spread over the vocabulary.
        chunk: rows whose logits exist at once.

    Returns:
        (N,) float32, nats.
    """
    needs_head = weight.requires_grad and torch.is_grad_enabled()
    function: Any = _TrainedHead if needs_head else _FrozenHead
    return function.apply(hidden, weight, targets, smoothing, chunk)


class _FrozenHead(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        chunk: int,
    ) -> Tensor:
        wants_grad = hidden.requires_grad
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)  # (N,)
        grad = torch.empty_like(hidden) if wants_grad else None  # (N, D)
        for part in _parts(len(targets), chunk):
            logits = (hidden[part] @ weight.T).float()  # (n, V)
            nll[part] = _nll(logits, targets[part], smoothing)
            if grad is not None:
                error = _dlogits(logits, targets[part], smoothing).to(hidden.dtype)
                grad[part] = error @ weight  # (n, D)
        if grad is not None:
            ctx.save_for_backward(grad)
        return nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0][:, None].to(grad.dtype), None, None, None, None


class _TrainedHead(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        chunk: int,
    ) -> Tensor:
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)  # (N,)
        for part in _parts(len(targets), chunk):
            nll[part] = _nll((hidden[part] @ weight.T).float(), targets[part], smoothing)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.options = smoothing, chunk  # pyright: ignore[reportAttributeAccessIssue]
        return nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        smoothing, chunk = ctx.options
        grad_hidden = torch.empty_like(hidden)  # (N, D)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)  # (V, D)
        for part in _parts(len(targets), chunk):
            logits = (hidden[part] @ weight.T).float()  # (n, V)
            error = _dlogits(logits, targets[part], smoothing) * grads[0][part, None]
            error = error.to(hidden.dtype)
            grad_hidden[part] = error @ weight
            grad_weight += error.T @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _parts(rows: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]


def _nll(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    hit = logits.gather(-1, targets[:, None])[:, 0]
    if smoothing:
        hit = (1 - smoothing) * hit + smoothing * logits.mean(-1)
    return logits.logsumexp(-1) - hit


def _dlogits(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """softmax(logits) - target distribution."""
    error = torch.softmax(logits, -1)
    if smoothing:
        error -= smoothing / logits.shape[-1]
    hit = torch.full_like(targets[:, None], smoothing - 1, dtype=error.dtype)
    return error.scatter_add_(-1, targets[:, None], hit)
