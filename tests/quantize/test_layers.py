"""A streamed model computes as the whole one; moved factors change nothing; order is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core.device import find
from dialoop.models.load import load_model
from dialoop.quantize import balance, scaling
from dialoop.quantize.grid import Grid, nearest
from dialoop.quantize.methods.int8 import Int8
from dialoop.quantize.moments import Moments
from dialoop.quantize.ordered import in_order, survey
from dialoop.quantize.rows import PackedRow
from dialoop.quantize.source import Source, passes

CPU = torch.device("cpu")


def row(seed: int = 0, lengths: tuple[int, ...] = (9, 14, 5)) -> PackedRow:
    rng = np.random.default_rng(seed)
    bounds = tuple(int(b) for b in np.cumsum([0, *lengths]))
    ids = rng.integers(3, 400, bounds[-1])
    return PackedRow(ids, bounds, np.ones(bounds[-1], np.float32))


@pytest.mark.parametrize("family", ["llama", "internlm3"])
@pytest.mark.parametrize("tied", [True, False])
def test_streaming_equals_the_whole_model(family: str, tmp_path: Path, *, tied: bool) -> None:
    folder = make_tiny_checkpoint(tmp_path / "m", family, tied=tied)  # pyright: ignore[reportArgumentType]
    source = Source(folder, torch.float32, CPU)
    packed = row()
    parts = source.begin([packed])
    for number in range(len(source)):
        passes(source.layer(number), parts)
    logits = source.finish(parts[0].states) @ source.head().T
    model = load_model(folder, device=find("cpu"), dtype="fp32")
    for start, end in zip(packed.bounds, packed.bounds[1:], strict=False):
        with torch.no_grad():
            whole = model(torch.from_numpy(packed.ids[None, start:end])).logits[0]
        torch.testing.assert_close(logits[start:end], whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("pair", [*balance.NORMS, *balance.PROJECTIONS], ids=lambda p: p.maker)
def test_moved_factors_leave_the_layer_as_it_was(pair: balance.Pair, tiny: Path) -> None:
    source = Source(tiny, torch.float32, CPU)
    layer = source.layer(0)
    parts = source.begin([row()])
    before = layer.forward(parts[0])
    width = layer.weight(pair.readers[0]).shape[1]
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(5)) * 4 + 0.2
    applied = balance.apply(layer, pair, balance.shared(layer, pair, drawn))
    assert applied.std() > 0.3
    torch.testing.assert_close(layer.forward(parts[0]), before, atol=2e-5, rtol=1e-5)
    stored = layer.stored(f"{pair.maker}.weight", torch.empty(1, dtype=torch.bfloat16))
    assert stored.dtype == torch.bfloat16


def test_later_projections_see_rounded_earlier_ones_in_one_part_or_several(tiny: Path) -> None:
    """The moments are those of a forward pass with everything before already changed."""
    lengths = [(9, 14, 5), (7, 3), (11,)]
    rows = [row(seed, each) for seed, each in enumerate(lengths)]
    joined = PackedRow(
        np.concatenate([r.ids for r in rows]),
        tuple(int(b) for b in np.cumsum([0, *(n for each in lengths for n in each)])),
        np.concatenate([r.weights for r in rows]),
    )
    found: list[dict[str, torch.Tensor]] = []
    states: list[torch.Tensor] = []
    for material in ([joined], rows):
        source = Source(tiny, torch.float32, CPU)
        layer = source.layer(0)
        parts = source.begin(material)
        seen: dict[str, torch.Tensor] = {}

        def visit(name: str, moments: Moments, seen=seen, layer=layer) -> None:
            seen[name] = moments.hessian
            layer.set_dense(f"{name}.weight", layer.weight(name) * 0.5)

        in_order(layer, parts, visit)
        found.append(seen)
        states.append(torch.cat([part.states for part in parts], 1))
        after = survey(layer, source.begin(material), products=True)
        for name, hessian in seen.items():
            torch.testing.assert_close(hessian, after[name].hessian, atol=1e-4, rtol=1e-4)
    assert list(found[0]) == [
        *(f"self_attn.{n}_proj" for n in "qkvo"),
        *(f"mlp.{n}_proj" for n in ("gate", "up", "down")),
    ]
    for name, hessian in found[0].items():
        torch.testing.assert_close(hessian, found[1][name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-5)


def test_layers_that_read_the_same_states_share_their_moments(tiny: Path) -> None:
    source = Source(tiny, torch.float32, CPU)
    seen = survey(source.layer(0), source.begin([row(), row(1)]), products=False)
    assert seen["self_attn.q_proj"] is seen["self_attn.v_proj"]
    assert seen["mlp.gate_proj"] is seen["mlp.up_proj"]
    assert seen["self_attn.o_proj"] is not seen["self_attn.q_proj"]
    assert {m.num_tokens for m in seen.values()} == {56}


def test_searched_factors_lose_less_than_none(tiny: Path) -> None:
    source = Source(tiny, torch.float32, CPU)
    layer = source.layer(0)
    pair = balance.NORMS[0]
    norm = layer.tensors[f"{pair.maker}.weight"].clone()
    norm[:3] *= 30  # channels that matter
    layer.change(f"{pair.maker}.weight", norm)
    seen = survey(layer, source.begin([row(), row(1)]), products=True)[pair.readers[0]]
    grid = Grid(4, symmetric=False, group=32)
    factors = scaling.search(layer, pair, seen, grid, 20)
    assert factors[:3].mean() > 2 * factors[3:].mean()
    weight = torch.cat([layer.weight(name) for name in pair.readers])

    def lost(by: torch.Tensor) -> float:
        ones = torch.ones(weight.shape[1])
        rounded = nearest(weight * by, ones, grid, torch.float32, search=False).dense() / by
        error = rounded - weight
        return float(((error @ seen.hessian) * error).sum())

    assert lost(factors) < 0.5 * lost(torch.ones_like(factors))


def test_int8_smooths_the_inputs_of_every_linear_layer(tiny: Path) -> None:
    source = Source(tiny, torch.float32, CPU)
    layer = source.layer(0)
    before = {name: tensor.clone() for name, tensor in layer.tensors.items()}
    parts = source.begin([row()])
    whole = layer.forward(parts[0])
    Int8().quantize(layer, parts, dict.fromkeys(layer.linears, 8))
    for pair in (*balance.NORMS, *balance.PROJECTIONS):
        for name in pair.readers:
            key = f"{name}.weight"
            assert not torch.allclose(layer.tensors[key], before[key], rtol=0.05), name
    error = (parts[0].states - whole).square().mean() / whole.square().mean()
    assert error < 1e-3


def test_smoothing_is_that_of_the_paper(tiny: Path) -> None:
    """With a strength of 0.5 inputs and weights get the same range."""
    source = Source(tiny, torch.float32, CPU)
    layer = source.layer(0)
    pair = balance.NORMS[1]
    seen = survey(layer, source.begin([row()]), products=False)[pair.readers[0]]
    applied = balance.apply(layer, pair, scaling.smooth(layer, pair, seen, 0.5))
    weights = torch.stack([layer.weight(name).abs().amax(0) for name in pair.readers]).amax(0)
    torch.testing.assert_close(weights, seen.largest / applied, rtol=1e-4, atol=1e-6)
