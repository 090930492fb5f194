"""Recomputed activations give the gradients of kept ones, and keep less."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core import device
from dialoop.core.errors import UserError
from dialoop.data.units import Row, Unit
from dialoop.models import lora
from dialoop.models.load import load_model
from dialoop.train.activations import Mode, recompute
from dialoop.train.batch import Step, collate
from dialoop.train.view import View, use_packed_attention


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", layers=4)


def step(tiny: Path, mode: Mode) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of adapters, and the bytes that were kept for the backward pass."""
    model = load_model(tiny, device=device.find("cpu"), dtype="fp32").train()
    use_packed_attention(model)
    lora.attach(model, lora.LoraConfig(rank=4), seed=0)
    for layer in lora.layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(0))
    recompute(model, mode, "cpu")
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


def test_offloading_from_the_cpu_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="`offload` moves activations to the CPU"):
        step(tiny, "offload")
