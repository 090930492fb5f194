"""Attention of packed queries to packed keys, whole or in parts, against float64."""

from itertools import pairwise

import pytest
import torch

from dialoop.train.kernels import block_attention
from dialoop.train.kernels.block_attention import Block

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PLACES = [
    pytest.param("cpu", torch.float32, 1e-5, id="cpu"),
    pytest.param("cuda", torch.float32, 1e-4, id="cuda fp32", marks=[pytest.mark.gpu, NO_CUDA]),
    pytest.param("cuda", torch.bfloat16, 2e-2, id="cuda bf16", marks=[pytest.mark.gpu, NO_CUDA]),
]
"""The tolerance is relative to the largest number of the reference, and to one at least."""
BLOCKS = {
    "causal": Block((0, 5, 70, 71, 200), (0, 5, 70, 71, 200)),
    "queries at the end": Block((0, 3, 40), (0, 9, 140)),
    "all keys": Block((0, 5, 70, 72), (0, 30, 31, 60), is_causal=False),
    "one of each": Block((0, 1), (0, 1)),
}
HEADS = [(4, 4), (6, 2), (4, 1)]
WIDTH, SCALE = 32, 0.21


def tensors(block: Block, heads: int, kv_heads: int) -> list[torch.Tensor]:
    """Query, key, value and the gradient of the output, rounded to bfloat16, in float64."""
    generator = torch.Generator().manual_seed(0)
    t, s = block.query_bounds[-1], block.key_bounds[-1]
    shapes = [(heads, t, WIDTH), (kv_heads, s, WIDTH), (kv_heads, s, WIDTH), (heads, t, WIDTH)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return [x.bfloat16().double() for x in drawn]


def mask(block: Block) -> torch.Tensor:
    """(t, s), true where a query sees a key: written from the definition."""
    seen = torch.zeros(block.query_bounds[-1], block.key_bounds[-1], dtype=torch.bool)
    documents = zip(pairwise(block.query_bounds), pairwise(block.key_bounds), strict=True)
    for (q0, q1), (k0, k1) in documents:
        for q in range(q0, q1):
            last = k1 - (q1 - 1 - q) if block.is_causal else k1
            seen[q, k0:last] = True
    return seen


def reference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = query.shape[0] // key.shape[0]
    k, v = (x.repeat_interleave(groups, dim=0) for x in (key, value))
    scores = (query @ k.mT * SCALE).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def assert_near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    error = (got.detach().cpu().double() - wanted.detach()).abs().max()
    assert error <= tolerance * wanted.detach().abs().max().clamp_min(1)


@pytest.mark.parametrize(("place", "dtype", "tolerance"), PLACES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_it_equals_float64(
    name: str, heads: tuple[int, int], place: str, dtype: torch.dtype, tolerance: float
) -> None:
    block = BLOCKS[name]
    *given, grad = tensors(block, *heads)
    leaves = [x.clone().requires_grad_() for x in given]
    out, lse = reference(leaves[0], leaves[1], leaves[2], mask(block))
    out.backward(grad)
    mine = [x.to(place, dtype).requires_grad_() for x in given]
    got = block_attention.attend(mine[0], mine[1], mine[2], block, SCALE)
    got.backward(grad.to(place, dtype))
    assert_near(got, out, tolerance)
    _, log = block_attention.forward(mine[0], mine[1], mine[2], block, SCALE)
    assert_near(log, lse, tolerance)
    for ours, theirs in zip(mine, leaves, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_near(ours.grad, theirs.grad, tolerance)


@pytest.mark.parametrize(("place", "dtype", "tolerance"), PLACES)
def test_parts_of_the_keys_add_up(place: str, dtype: torch.dtype, tolerance: float) -> None:
    """As a ring does it: earlier keys whole, own keys causal; gradients by the merged output."""
    earlier, own = Block((0, 64), (0, 100), is_causal=False), Block((0, 64), (0, 64))
    whole = Block((0, 64), (0, 164))
    *given, grad = tensors(whole, 6, 2)
    leaves = [x.clone().requires_grad_() for x in given]
    wanted, _ = reference(leaves[0], leaves[1], leaves[2], mask(whole))
    wanted.backward(grad)
    query, key, value = (x.to(place, dtype) for x in given)
    parts = [(earlier, slice(0, 100)), (own, slice(100, 164))]
    found = [block_attention.forward(query, key[:, k], value[:, k], b, SCALE) for b, k in parts]
    lse = torch.logaddexp(found[0][1], found[1][1])  # (H, t)
    merged = sum(out.float() * (log - lse).exp()[..., None] for out, log in found)
    assert isinstance(merged, torch.Tensor)
    assert_near(merged, wanted, tolerance)
    out, grad = merged.to(dtype), grad.to(place, dtype)
    grads = [
        block_attention.backward(grad, query, key[:, k], value[:, k], out, lse, b, SCALE)
        for b, k in parts
    ]
    totals = [
        grads[0][0].float() + grads[1][0].float(),
        *(torch.cat([grads[0][i], grads[1][i]], dim=1) for i in (1, 2)),
    ]
    for ours, theirs in zip(totals, leaves, strict=True):
        assert theirs.grad is not None
        assert_near(ours, theirs.grad, tolerance)
