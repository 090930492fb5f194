"""GaLore and APOLLO are their papers' algorithms; they learn, save a model, and resume."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_tiny_checkpoint
from tests.train.small import (
    assert_it_learns,
    assert_it_resumes_bit_for_bit,
    job,
    logits,
    losses,
    ours,
)
from torch import Tensor

from dialoop.core import events
from dialoop.core.errors import UserError
from dialoop.train.groups import group
from dialoop.train.optimizers.adamw import AdamW
from dialoop.train.plan import plan
from dialoop.train.run import run
from dialoop.train.spec import Optim
from dialoop.train.subspace import Channels, InSubspace, Principal, Subspace, _rounded

KINDS: dict[str, dict[str, Any]] = {
    "galore": {"kind": "galore", "rank": 8, "update_proj_gap": 2, "scale": 1.0},
    "galore fast": {"kind": "galore", "rank": 8, "update_proj_gap": 2, "svd_iterations": 2},
    "galore bf16": {"kind": "galore", "rank": 8, "weights": "bf16", "scale": 1.0},
    "apollo": {"kind": "apollo", "rank": 8, "update_proj_gap": 2},
    "apollo mini": {"kind": "apollo", "rank": 1, "update_proj_gap": 2},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny", hidden=32)


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_and_saves_a_model_and_resumes(
    name: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    dtype = "bf16" if name.endswith("bf16") else "fp32"
    wanted = job(tiny, dialogues, tmp_path / "out", tuner=KINDS[name], dtype=dtype)
    assert_it_learns(wanted)
    theirs = AutoModelForCausalLM.from_pretrained(wanted.output, dtype=torch.float32)
    torch.testing.assert_close(logits(ours(wanted.output)), logits(theirs), atol=1e-5, rtol=1e-5)
    assert_it_resumes_bit_for_bit(wanted, tmp_path / "twice")


@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes tells which kernels a CPU lacks
def test_states_may_have_eight_bits(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wanted = job(tiny, dialogues, tmp_path / "out", tuner=KINDS["galore"], optimizer="adamw_8bit")
    assert_it_learns(wanted)
    assert_it_resumes_bit_for_bit(wanted, tmp_path / "twice")


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_layer_by_layer_is_the_same_and_keeps_no_gradient(
    name: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    optim = {"lr": 0.01, "max_grad_norm": 0}
    whole = job(tiny, dialogues, tmp_path / "whole", tuner=KINDS[name], optim=optim)
    run(whole, events.ignore)
    tuner = KINDS[name] | {"per_layer": True}
    layers = job(tiny, dialogues, tmp_path / "layers", tuner=tuner, optim=optim)
    run(layers, events.ignore)
    assert losses(layers.output) == losses(whole.output)


def fitted(shape: tuple[int, int], subspace: Subspace, rank: int, grads: list[Tensor]) -> Tensor:
    torch.manual_seed(1)
    p = torch.nn.Parameter(torch.randn(shape))
    groups = [group([p], 0.1, is_hidden=True) | {"is_projected": True}]
    optimizer = InSubspace(groups, subspace, rank, AdamW(), Optim())
    for grad in grads:
        optimizer.param_groups[0]["lr"] = 0.03
        p.grad = grad.clone()
        optimizer.step()
    return p.detach()


def start(shape: tuple[int, int]) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape)


class Adam:
    """Adam's direction, as written in the paper."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.95) -> None:
        self.m = self.v = torch.zeros(())
        self.t, self.betas = 0, (beta1, beta2)

    def __call__(self, r: Tensor) -> Tensor:
        self.t += 1
        one, two = self.betas
        self.m = one * self.m + (1 - one) * r
        self.v = two * self.v + (1 - two) * r**2
        m, v = self.m / (1 - one**self.t), self.v / (1 - two**self.t)
        return m / (v.sqrt() + 1e-8)


SHAPES = [(6, 10), (10, 6), (7, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_galore_is_algorithm_2(shape: tuple[int, int]) -> None:
    """Zhao et al. 2024, algorithm 2, with AdamW's decay; P on the left when m <= n."""
    torch.manual_seed(0)
    grads = [torch.randn(shape) for _ in range(7)]
    w, adam, p, is_left = start(shape), Adam(), torch.zeros(()), shape[0] <= shape[1]
    for t, g in enumerate(grads):
        if t % 3 == 0:
            p = torch.linalg.svd(g if is_left else g.T, full_matrices=False)[0][:, :4]
        update = p @ adam(p.T @ g) if is_left else adam(g @ p) @ p.T
        w = w - 0.03 * 0.1 * w - 0.03 * 0.25 * update
    got = fitted(shape, Principal(3, 0.25, 0), 4, grads)
    torch.testing.assert_close(got, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_apollo_is_algorithm_1(shape: tuple[int, int], rank: int) -> None:
    """Zhu et al. 2024, algorithm 1 and its norm-growth limiter; rank 1 is APOLLO-Mini."""
    torch.manual_seed(0)
    grads = [torch.randn(shape) * (1 + t) for t in range(7)]
    w, adam, last = start(shape), Adam(), None
    for t, g in enumerate(grads):
        generator = torch.Generator().manual_seed(5 + t // 3)
        p = torch.randn((rank, min(shape)), generator=generator) / math.sqrt(rank)
        along = g if shape[0] <= shape[1] else g.T
        r = p @ along
        n = adam(r)
        if rank == 1:
            scaled = along * (n.norm() / r.norm())
        else:
            scaled = torch.stack(
                [along[:, j] * n[:, j].norm() / r[:, j].norm() for j in range(r.shape[1])], 1
            )
        if last is not None and scaled.norm() / last > 1.01:
            scaled = scaled / scaled.norm() * 1.01 * last
        last = scaled.norm()
        update = scaled if shape[0] <= shape[1] else scaled.T
        w = w - 0.03 * 0.1 * w - 0.03 * 2.0 * update
    got = fitted(shape, Channels(3, 2.0, 1.01, seed=5), rank, grads)
    torch.testing.assert_close(got, w, rtol=1e-5, atol=1e-5)


def test_rounding_at_random_keeps_the_mean() -> None:
    value = torch.full((100_000,), 1 + 1e-3)  # between 1 and 1.0078125
    rounded = _rounded(value, torch.bfloat16).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0078125}
    assert rounded.mean().item() == pytest.approx(1 + 1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"optimizer": "muon"}, "where muon has no meaning"),
        ({"tuner": {"per_layer": True}, "accumulate": 2}, "use accumulate 1"),
        ({"tuner": {"weights": "bf16"}}, "only with dtype bf16"),
        ({"tuner": {"per_layer": True}}, r"use optim\.max_grad_norm 0"),
    ],
)
def test_what_cannot_be_is_refused(
    changes: dict[str, Any], complaint: str, tiny: Path, dialogues: Path
) -> None:
    tuner = {"kind": "galore"} | changes.pop("tuner", {})
    with pytest.raises(UserError, match=complaint):
        job(tiny, dialogues, tiny, tuner=tuner, **changes)


def test_the_plan_knows_that_states_are_small(tiny: Path, dialogues: Path) -> None:
    def memory(tuner: dict[str, Any]) -> int:
        wanted = job(Path("internlm3-8b"), dialogues, tiny, tuner=tuner, dtype="bf16")
        return plan(wanted.model_copy(update={"batch_size": 1})).memory_bytes

    full = memory({"kind": "full"})
    galore = memory({"kind": "galore", "rank": 256})
    assert memory({"kind": "apollo"}) < galore < full - 40 * 2**30
    assert memory({"kind": "galore", "weights": "bf16"}) < galore - 40 * 2**30
