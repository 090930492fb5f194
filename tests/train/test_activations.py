"""Recomputed activations give the gradients of kept ones, and keep less."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import make_tiny_checkpoint
from transformers import BertConfig, BertModel

from dialoop.core import device
from dialoop.core.errors import MachineError, UserError
from dialoop.data.units import Row, Unit
from dialoop.models import lora
from dialoop.models.load import load_model
from dialoop.train.activations import Mode, recompute
from dialoop.train.batch import Step, collate
from dialoop.train.compiled import COMPILERS, compile_layers
from dialoop.train.tiles import tile_mlps
from dialoop.train.view import View, use_packed_attention

SLOW_TO_COMPILE = (("none", 0), ("none", 7), ("full", 7))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", layers=4)


def step(
    tiny: Path, mode: Mode, *, tile: int = 0, compiled: bool = False
) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of adapters, and the bytes that were kept for the backward pass."""
    model = load_model(tiny, device=device.find("cpu"), dtype="fp32").train()
    use_packed_attention(model)
    lora.attach(model, lora.LoraConfig(rank=4), seed=0)
    for layer in lora.layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(0))
    if tile:
        tile_mlps(model, tile, compiled=compiled)
    recompute(model, mode, "cpu")
    if compiled:
        compile_layers(model)
    random = np.random.default_rng(0)
    units = [
        Unit((Row(random.integers(5, 60, n).astype(np.int32), np.ones(n, np.float32)),))
        for n in (20, 1, 33)
    ]
    batch = collate(units, torch.device("cpu"), Step(54.0, 3))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = batch.token_mean(View(model).token_nll(batch))
    loss.backward()
    gradients: dict[str, Any] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return gradients, sum(kept.values())


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradients_are_those_of_kept_activations(mode: Mode, tiny: Path) -> None:
    expected, _ = step(tiny, "none")
    got, _ = step(tiny, mode)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-7)


def test_full_keeps_less_than_none(tiny: Path) -> None:
    assert step(tiny, "full")[1] < step(tiny, "none")[1] / 2


@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize("tile", [1, 7, 54, 100])
def test_mlps_in_tiles_give_the_gradients_of_whole_ones(tile: int, mode: Mode, tiny: Path) -> None:
    expected, _ = step(tiny, "none")
    got, _ = step(tiny, mode, tile=tile)
    for name, gradient in expected.items():  # products of other shapes are summed in another order
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5)


def test_tiles_keep_nothing_of_an_mlp(tiny: Path) -> None:
    assert step(tiny, "none", tile=7)[1] < step(tiny, "none")[1] - 4 * 54 * 4 * 128


def test_a_model_without_plain_mlps_is_refused() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(UserError, match="mlp_tile: the layers of bert have no plain MLP"):
        tile_mlps(BertModel(config), 8)


@pytest.mark.filterwarnings("ignore")  # the compiler's own: torch.jit, .grad of a non-leaf tensor
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("mode", "tile"),
    [("full", 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_TO_COMPILE)],
)
def test_compiled_equals_eager(mode: Mode, tile: int, tiny: Path) -> None:
    expected, _ = step(tiny, "none")
    got, _ = step(tiny, mode, tile=tile, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]  # it did compile
    torch._dynamo.reset()
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm()


def test_compiling_without_a_compiler_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MachineError, match="compile: none of g"):
        step(tiny, "none", compiled=True)


def test_offloading_from_the_cpu_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="`offload` moves activations to the CPU"):
        step(tiny, "offload")
