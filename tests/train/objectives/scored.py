"""Units of random ids and a tiny model, for tests of objectives that score or embed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core.device import find
from dialoop.data.units import Row, Unit
from dialoop.models.heads import Head
from dialoop.models.load import load_model
from dialoop.train.batch import Step, collate
from dialoop.train.objectives import Objective
from dialoop.train.view import View, use_packed_attention

CPU = torch.device("cpu")


def tiny_model(folder: Path, head: Head, num_scores: int | None = None) -> Any:
    """A decoder in float32 with packed attention, in training mode."""
    make_tiny_checkpoint(folder)
    torch.manual_seed(0)
    model = load_model(folder, device=find("cpu"), dtype="fp32", head=head, num_scores=num_scores)
    use_packed_attention(model)
    return model.train()


def row(random: np.random.Generator, length: int, second: int = 0) -> Row:
    ids = random.integers(3, 250, length).astype(np.int32)
    return Row(ids, np.zeros(length, np.float32), second)


def step(
    objective: Objective, model: Any, parts: list[list[Unit]]
) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Loss, metrics and gradients of one step of micro-batches, as the loop runs it."""
    model.zero_grad()
    units = sum(map(len, parts))
    whole = Step(1.0, units)
    state = torch.get_rng_state()
    if objective.surveys:
        with torch.no_grad():
            found = [objective.survey(View(model), collate(p, CPU, whole)) for p in parts]
        whole = Step(1.0, units, surveyed=torch.cat(found))
        torch.set_rng_state(state)
    loss, metrics, place = 0.0, dict[str, float](), 0
    for part in parts:
        batch = collate(part, CPU, whole, place=place)
        place += batch.num_documents
        outcome = objective.loss(View(model), batch)
        outcome.loss.backward()
        loss += float(outcome.loss.detach())
        for name, value in outcome.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss, metrics, grads


def assert_same(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 1e-5
) -> None:
    """Gradients agree within a share of the largest."""
    assert got.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, rtol=0, atol=share * largest)
