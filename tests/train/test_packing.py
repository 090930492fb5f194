"""A packed row gives what its documents give alone; the chunked loss is the plain one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tiny import make_tiny_checkpoint

from dialoop.core import device
from dialoop.data.units import Row, Unit
from dialoop.models.load import load_model
from dialoop.train.batch import Step, collate, label_weight
from dialoop.train.kernels.cross_entropy import token_nll
from dialoop.train.view import View, use_packed_attention


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_checkpoint(folder)
    return folder


def documents(lengths: list[int]) -> list[Unit]:
    random = np.random.default_rng(0)
    return [
        Unit(
            (
                Row(
                    random.integers(5, 60, n).astype(np.int32),
                    random.integers(0, 2, n).astype(np.float32),
                ),
            )
        )
        for n in lengths
    ]


def test_a_packed_row_has_the_loss_and_gradient_of_its_documents_alone(tiny: Path) -> None:
    model = load_model(tiny, device=device.find("cpu"), dtype="fp32")
    rows = documents([1, 7, 13, 2, 30])
    total = label_weight(rows)

    def gradient(packed: bool) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = 0.0
        for part in [rows] if packed else [[row] for row in rows]:
            batch = collate(part, torch.device("cpu"), Step(total, 1))
            if not len(batch.targets):
                continue
            share = batch.token_mean(View(model).token_nll(batch))
            share.backward()
            loss += share.item()
        embedding: Any = model.get_input_embeddings()
        grad = embedding.weight.grad
        assert grad is not None
        return loss, grad.clone()

    use_packed_attention(model)
    alone, alone_grad = gradient(packed=False)
    packed, packed_grad = gradient(packed=True)
    assert packed == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(packed_grad, alone_grad, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_of_transformers(tiny: Path) -> None:
    plain = load_model(tiny, device=device.find("cpu"), dtype="fp32")
    packed = load_model(tiny, device=device.find("cpu"), dtype="fp32")
    use_packed_attention(packed)
    (unit,) = documents([25])
    (row,) = unit.rows
    labels = torch.where(torch.tensor(row.weights) > 0, torch.tensor(row.ids).long(), -100)
    call: Any = plain
    expected = call(input_ids=torch.tensor(row.ids).long()[None], labels=labels[None]).loss
    batch = collate([unit], torch.device("cpu"), Step(1.0, 1))
    assert View(packed).token_nll(batch).mean().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunked_loss_equals_cross_entropy(is_trained: bool, chunk: int, smoothing: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(10, 8, requires_grad=True)
    weight = torch.randn(17, 8, requires_grad=is_trained)
    targets, scale = torch.randint(17, (10,)), torch.rand(10)
    nll = token_nll(hidden, weight, targets, smoothing=smoothing, chunk=chunk)
    (nll * scale).sum().backward()
    got = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    expected = F.cross_entropy(
        hidden @ weight.T, targets, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(nll, expected)
    (expected * scale).sum().backward()
    for ours, theirs in zip(got, [hidden.grad, weight.grad], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
