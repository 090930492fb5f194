"""Documents side by side, filled up, attend as each one alone does."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dialoop.models.padded_attention import padded_attention

LENGTHS = (1, 7, 8, 33, 2, 1, 64, 5)
BOUNDS = tuple(torch.tensor([0, *LENGTHS]).cumsum(0).tolist())


def one_by_one(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, is_causal: bool
) -> torch.Tensor:
    """Plain softmax attention of each document, by the formula."""
    groups, width = q.shape[1] // k.shape[1], q.shape[-1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    found = []
    for start, end in pairwise(BOUNDS):
        scores = q[:, :, start:end] @ k[:, :, start:end].mT / width**0.5
        age = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = age < 0 if is_causal else torch.zeros_like(age, dtype=torch.bool)
        if window is not None:
            hidden = hidden | (age.abs() >= window)
        weights = F.softmax(scores.masked_fill(hidden, -torch.inf), -1)
        found.append(weights @ v[:, :, start:end])
    return torch.cat(found, 2).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_it_is_attention_of_each_document(kv_heads: int, is_causal: bool, window: Any) -> None:
    """Output and gradients, float64, to 1e-12."""
    torch.manual_seed(0)
    sizes = (4, kv_heads, kv_heads)
    inputs = [torch.randn(1, h, BOUNDS[-1], 8, dtype=torch.float64) for h in sizes]
    grad = torch.randn(1, BOUNDS[-1], 4, 8, dtype=torch.float64)
    found = []
    for is_ours in (True, False):
        mine = [x.clone().requires_grad_() for x in inputs]
        q, k, v = mine
        if is_ours:
            out = padded_attention(q, k, v, BOUNDS, window=window, is_causal=is_causal)
        else:
            out = one_by_one(q, k, v, window, is_causal)
        out.backward(grad)
        found.append([out.detach(), *(x.grad for x in mine)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_scale_and_dropout_are_passed_on() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, BOUNDS[-1], 8) for _ in range(3))
    plain = padded_attention(q, k, v, BOUNDS)
    assert not torch.allclose(padded_attention(q, k, v, BOUNDS, scale=0.01), plain)
    assert not torch.allclose(padded_attention(q, k, v, BOUNDS, dropout=0.5), plain)
