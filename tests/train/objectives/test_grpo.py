"""GRPO's loss is the papers' formula, and TRL's where it is installed; its groups are as described.

Tolerance of losses and gradients: 1e-5 in float32.
"""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import make_tiny_checkpoint
from torch import Tensor, nn

from dialoop.core.device import find
from dialoop.data.units import Row, Unit
from dialoop.models import lora
from dialoop.models.load import load_model
from dialoop.train.batch import Step, collate, label_weight
from dialoop.train.objectives.grpo import Grpo, advantages
from dialoop.train.rewards.length import Length
from dialoop.train.rollouts.policy import PolicyRollout
from dialoop.train.view import View, use_packed_attention

PROMPT, LIMIT = 5, 9
LENGTHS = [3, 9, 1, 6]
VALUES = [1.3, -0.7, 0.4, -1.1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("grpo") / "model", hidden=32)


def grpo(**changes: Any) -> Grpo:
    rollout = PolicyRollout(max_new_tokens=LIMIT, temperature=changes.pop("temperature", 1.0))
    return Grpo(rewards=[Length()], rollout=rollout, **changes)


def units(old: Tensor | None) -> list[Unit]:
    """Four answered prompts; (4, LIMIT) old log-probabilities, padded."""
    chance, made = np.random.default_rng(0), []
    for n, (length, value) in enumerate(zip(LENGTHS, VALUES, strict=True)):
        ids = chance.integers(5, 300, PROMPT + length).astype(np.int32)
        weights = np.r_[np.zeros(PROMPT), np.ones(length)].astype(np.float32)
        known = None if old is None else old[n, :length].numpy()
        made.append(Unit((Row(ids, weights),), value, known))
    return made


def padded(made: list[Unit]) -> tuple[Tensor, Tensor]:
    """(4, PROMPT + LIMIT) ids and (4, LIMIT) mask of the answers."""
    ids = torch.zeros(len(made), PROMPT + LIMIT, dtype=torch.long)
    mask = torch.zeros(len(made), LIMIT)
    for n, unit in enumerate(made):
        ids[n, : len(unit)] = torch.from_numpy(unit.rows[0].ids.astype(np.int64))
        mask[n, : len(unit) - PROMPT] = 1
    return ids, mask


def ours(folder: Path, objective: Grpo, made: list[Unit]) -> tuple[float, Tensor]:
    """Loss and the gradient of the embedding, in two micro-batches."""
    model = load_model(folder, device=find("cpu"), dtype="fp32")
    use_packed_attention(model)
    start = load_model(folder, device=find("cpu"), dtype="fp32")
    shift(start)
    use_packed_attention(start)
    step, loss = Step(label_weight(made), len(made)), 0.0
    for part in (made[:3], made[3:]):
        batch = collate(part, torch.device("cpu"), step)
        share = objective.loss(View(model, companion=View(start)), batch).loss
        share.backward()
        loss += float(share.detach())
    return loss, grad_of(model)


def grad_of(model: nn.Module) -> Tensor:
    grad = next(p for n, p in model.named_parameters() if "embed" in n).grad
    assert grad is not None
    return grad


@torch.no_grad()
def shift(model: nn.Module) -> None:
    """Another model: a reference that is not the policy."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))


def padded_logps(model: Any, made: list[Unit], temperature: float) -> Tensor:
    """(4, LIMIT) by a plain forward pass over padded rows."""
    ids, _ = padded(made)
    logits = model(ids).logits[:, PROMPT - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]


def formula(objective: Grpo, logps: Tensor, old: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    advantage = torch.tensor(VALUES)[:, None]
    difference = logps - old
    if objective.ratio == "sequence":
        difference = ((difference * mask).sum(1) / mask.sum(1))[:, None].expand_as(mask)
    ratio = difference.exp()
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    loss = -torch.min(ratio * advantage, clipped * advantage)
    loss = loss + objective.beta * ((reference - logps).exp() - (reference - logps) - 1)
    match objective.loss_type:
        case "grpo":
            return ((loss * mask).sum(1) / mask.sum(1)).mean()
        case "dr_grpo":
            return (loss * mask).sum() / (len(mask) * LIMIT)
        case _:
            return (loss * mask).sum() / mask.sum()


CASES = [
    *({"loss_type": kind, "beta": beta} for kind in ("grpo", "dr_grpo", "bnpo", "dapo")
      for beta in (0.0, 0.1)),
    {"loss_type": "grpo", "ratio": "sequence", "clip_low": 3e-2, "clip_high": 4e-2},
    {"loss_type": "dapo", "clip_high": 0.28, "temperature": 0.7},
]  # fmt: skip


def old_logps(folder: Path, objective: Grpo) -> tuple[Tensor, Tensor]:
    """Of an older policy, near enough that some tokens are clipped; and of the reference."""
    model = load_model(folder, device=find("cpu"), dtype="fp32")
    temperature = objective.rollout.temperature
    with torch.no_grad():
        now = padded_logps(model, units(None), temperature)
        shift(model)
        reference = padded_logps(model, units(None), temperature)
    return now + 0.3 * torch.randn(now.shape, generator=torch.Generator().manual_seed(3)), reference


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_loss_is_the_formula(case: dict[str, Any], folder: Path) -> None:
    objective = grpo(**case)
    old, reference = old_logps(folder, objective)
    made = units(old)
    model = load_model(folder, device=find("cpu"), dtype="fp32")
    logps = padded_logps(model, made, objective.rollout.temperature)
    expected = formula(objective, logps, old, reference, padded(made)[1])
    expected.backward()
    loss, grad = ours(folder, objective, made)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    torch.testing.assert_close(grad, grad_of(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_loss_is_trl_s(case: dict[str, Any], folder: Path) -> None:
    trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    objective = grpo(**case)
    old, reference = old_logps(folder, objective)
    made = units(old)
    ids, mask = padded(made)
    model = load_model(folder, device=find("cpu"), dtype="fp32").train()
    temperature = objective.rollout.temperature

    def logps(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        found = padded_logps(model, made, temperature)
        return found, torch.zeros_like(found), None

    trl = SimpleNamespace(
        _get_per_token_logps_and_entropies=logps, aux_loss_enabled=False, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level=objective.ratio,
        beta=objective.beta, loss_type=objective.loss_type, epsilon_low=objective.clip_low,
        epsilon_high=objective.clip_high, max_completion_length=LIMIT, use_vllm=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=model, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
    )  # fmt: skip
    inputs = {
        "prompt_ids": ids[:, :PROMPT], "prompt_mask": torch.ones(len(made), PROMPT),
        "completion_ids": ids[:, PROMPT:], "completion_mask": mask,
        "advantages": torch.tensor(VALUES), "old_per_token_logps": old,
        "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    expected = trainer.GRPOTrainer._compute_loss(trl, model, inputs)
    expected.backward()
    loss, grad = ours(folder, objective, made)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    torch.testing.assert_close(grad, grad_of(model), atol=1e-5, rtol=1e-5)


def test_the_reference_is_the_policy_without_its_adapter(folder: Path) -> None:
    model = load_model(folder, device=find("cpu"), dtype="fp32")
    use_packed_attention(model)
    lora.attach(model, lora.LoraConfig(rank=2))
    batch = collate(units(None), torch.device("cpu"), Step(float(sum(LENGTHS)), len(LENGTHS)))
    objective = grpo(beta=0.5)
    assert float(objective.loss(View(model), batch).metrics["kl"]) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for layer in lora.layers(model).values():
            layer.lora_B.normal_(0, 0.5)
    assert float(objective.loss(View(model), batch).metrics["kl"]) > 1e-3


def test_advantages_are_deviations_from_the_group() -> None:
    rewards = np.array([[1.0, 0.0, 0.0], [2.0, 4.0, 9.0]])
    centred = np.array([[2 / 3, -1 / 3, -1 / 3], [-3, -1, 4]])
    np.testing.assert_allclose(advantages(rewards, "none"), centred)
    by_group = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(advantages(rewards, "group"), by_group)
    by_batch = centred / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(advantages(rewards, "batch"), by_batch)


def test_long_answers_are_penalised_softly() -> None:
    objective = grpo(overlong_tokens=4)  # from 5 of 9 tokens on
    penalty = objective._length_penalty(np.array([[3, 5, 7, 9]]))
    np.testing.assert_allclose(penalty, [[0, 0, -0.5, -1]])
