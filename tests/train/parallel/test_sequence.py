"""However a row's tokens are split over ranks, attention and its gradient are one process's."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.parallel.world import World, world

from dialoop.core.errors import UserError
from dialoop.models.attention import packed_attention
from dialoop.train.parallel import spans
from dialoop.train.parallel.mesh import Mesh, layout
from dialoop.train.parallel.methods import METHODS, Kind, choose, ulysses_size

WIDTH = 8


class Causal(torch.nn.Module):
    is_causal = True


ROWS = {
    "straddling": [5, 23, 9],
    "one document": [37],
    "one token each": [1] * 13,
    "odd": [1, 17, 2, 1, 30, 1],
    "fewer tokens than parts": [2, 1],
}


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with world(request.param, tmp_path_factory.mktemp("meet")) as started:
        yield request.param, started


def tensors(heads: int, kv_heads: int, total: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(total)
    shapes = [(heads, total, WIDTH), (kv_heads, total, WIDTH), (kv_heads, total, WIDTH)]
    return [torch.randn(shape, generator=generator) for shape in [*shapes, shapes[0]]]


@cache
def laid_out(size: int, ulysses: int) -> Mesh:
    return layout(size, ulysses)


def on_a_rank(
    kind: Kind, size: int, ulysses: int, heads: int, kv_heads: int, bounds: tuple[int, ...]
) -> tuple[list[int], list[torch.Tensor]]:
    sequence = laid_out(size, ulysses).sequence
    assert sequence is not None
    method = METHODS[kind]()
    mine = spans.indices(method.split(bounds[-1], sequence)[sequence.whole.rank])
    everything = tensors(heads, kv_heads, bounds[-1])
    *qkv, grad = (x[:, mine] for x in everything)
    leaves = [x.clone().requires_grad_() for x in qkv]
    query, key, value = leaves
    out = method.attend(query, key, value, bounds, sequence, 0.3)
    out.backward(grad)
    grads = [x.grad for x in leaves if x.grad is not None]
    return mine, [out.detach(), *grads]


def on_one_process(heads: int, kv_heads: int, bounds: tuple[int, ...]) -> list[torch.Tensor]:
    *qkv, grad = tensors(heads, kv_heads, bounds[-1])
    leaves = [x[None].requires_grad_() for x in qkv]
    lengths = [b - a for a, b in pairwise(bounds)]
    out, _ = packed_attention(
        Causal(), leaves[0], leaves[1], leaves[2], None, bounds=bounds,
        cu_seqlens=torch.tensor(bounds), max_seqlen=max(lengths), scaling=0.3,
    )  # fmt: skip
    out = out[0].transpose(0, 1)
    out.backward(grad)
    return [out.detach(), *(x.grad[0] for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("kind", list(METHODS))
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (5, 1)], ids=str)
def test_it_equals_one_process(
    kind: Kind, heads: tuple[int, int], ranks: tuple[int, World]
) -> None:
    size, started = ranks
    if kind == "usp" and size == 2:
        pytest.skip("two ranks have no two axes")
    ulysses = {"usp": 2, "ulysses": size}.get(kind, 1)
    for lengths in ROWS.values():
        bounds = (0, *torch.tensor(lengths).cumsum(0).tolist())
        answers = started(on_a_rank, kind, size, ulysses, *heads, bounds)
        expected = on_one_process(*heads, bounds)
        assert sorted(i for mine, _ in answers for i in mine) == list(range(bounds[-1]))
        for mine, parts in answers:
            for part, whole in zip(parts, expected, strict=True):
                torch.testing.assert_close(part, whole[:, mine], rtol=1e-5, atol=1e-5)


def test_the_form_is_chosen_by_heads_ranks_and_room() -> None:
    gib = 2**30
    assert choose(2, 32, 2, 2**20, 80 * gib) == "gather_kv"  # few key/value heads
    assert choose(4, 32, 32, 2**20, 80 * gib) == "ulysses"
    assert choose(8, 4, 4, 2**20, 80 * gib) == "gather_kv"  # fewer heads than ranks
    assert choose(4, 32, 2, 4 * gib, 80 * gib) == "usp"  # the keys of a row do not fit
    assert choose(8, 1, 1, 4 * gib, 80 * gib) == "ring"


def test_ranks_that_cannot_be_laid_out_are_refused() -> None:
    assert ulysses_size("usp", 8, 32) == 2
    assert ulysses_size("ulysses", 4, 32) == 4
    with pytest.raises(UserError, match="ulysses over 8 ranks needs as many query heads"):
        ulysses_size("ulysses", 8, 4)
    with pytest.raises(UserError, match="usp cannot lay 2 ranks out"):
        ulysses_size("usp", 2, 32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 3))
def test_every_split_holds_each_token_once(total: int, size: int, parts: int) -> None:
    for held in (spans.contiguous(total, size), spans.zigzag(total, size)):
        runs = [run for part in held for run in spans.subdivide(part, parts)]
        for split in (held, runs):
            assert sorted(i for part in split for i in spans.indices(part)) == list(range(total))
        lengths = [spans.length(part) for part in held]
        assert max(lengths) - min(lengths) <= 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_windows_and_crossings_hold_the_pairs_that_meet(lengths: list[int], data) -> None:
    bounds = (0, *torch.tensor(lengths).cumsum(0).tolist())
    a, b, c = sorted(data.draw(st.integers(0, bounds[-1])) for _ in range(3))
    owner = [i for i, n in enumerate(lengths) for _ in range(n)]
    expected = {(q, k) for q in range(b, c) for k in range(a, b) if owner[q] == owner[k]}
    met = spans.crossing((b, c), (a, b), bounds)
    got = set() if met is None else {(q, k) for q in range(*met[0]) for k in range(*met[1])}
    assert got == expected
    if b < c:
        seen = spans.window((b, c), bounds)
        pairs = set()
        for (q0, q1), (k0, k1) in zip(
            pairwise(seen.query_bounds), pairwise(seen.key_bounds), strict=True
        ):
            for q in range(q0, q1):
                last = k1 - (q1 - q)
                pairs |= {(b + q, seen.keys[0] + k) for k in range(k0, last + 1)}
        assert pairs == {(q, k) for q in range(b, c) for k in range(q + 1) if owner[q] == owner[k]}
