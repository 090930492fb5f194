"""Every optimiser learns and resumes bit for bit; Muon and the schedules are their formulas."""

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
    write_dialogues,
)

from dialoop.core import events
from dialoop.core.device import find
from dialoop.core.errors import MachineError, UserError
from dialoop.models.load import load_model
from dialoop.train.groups import group
from dialoop.train.optimizers.muon import Muon
from dialoop.train.plan import plan
from dialoop.train.run import run
from dialoop.train.schedule import rate
from dialoop.train.spec import Optim

RATES = {"adamw": 2e-3, "adamw_8bit": 2e-3, "muon": 5e-3, "adafactor": 1e-2}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    return write_dialogues(tmp_path / "data.jsonl")


@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes tells which kernels a CPU lacks
@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("kind", RATES)
def test_it_learns_and_resumes(
    kind: str, tuner: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    optim = {"lr": RATES[kind] * (5 if tuner == "lora" else 1), "weight_decay": 0.01}
    wanted = job(tiny, dialogues, tmp_path / "out", optimizer=kind, tuner=tuner, optim=optim)
    assert_it_learns(wanted)
    assert_it_resumes_bit_for_bit(wanted, tmp_path / "twice")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_eight_bit_states_are_eight_bits(tiny: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wanted = job(tiny, tiny, tiny / "out", optimizer="adamw_8bit", tuner="full")
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    wanted.tuner.prepare(model, 0)
    optimizer = wanted.tuner.optimizer(model, wanted.optim, wanted.optimizer, 0)
    table: Any = model.get_input_embeddings()
    table.weight.grad = torch.ones_like(table.weight)
    optimizer.step()
    assert optimizer.state[table.weight]["state1"].dtype == torch.uint8


def test_muon_takes_hidden_matrices_and_adamw_the_rest(tiny: Path) -> None:
    wanted = job(tiny, tiny, tiny / "out", optimizer="muon", tuner="full")
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    wanted.tuner.prepare(model, 0)
    optimizer: Any = wanted.tuner.optimizer(model, wanted.optim, wanted.optimizer, 0)
    by_muon = {id(p) for g in optimizer.parts[0].param_groups for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in by_muon}
    assert names == {n for n, _ in model.named_parameters() if n.endswith("proj.weight")}


@pytest.mark.parametrize("scale", ["adamw", "original"])
def test_a_muon_step_is_the_formula(scale: Any) -> None:
    """Within bfloat16 of five Newton-Schulz iterations in float64: 3 % of the update."""
    torch.manual_seed(0)
    p, grad = torch.nn.Parameter(torch.randn(24, 16)), torch.randn(24, 16)
    before = p.detach().clone()
    muon = Muon(scale=scale).build([group([p], 0.1, is_hidden=True)], Optim())
    muon.param_groups[0]["lr"] = 0.5
    p.grad = grad.clone()
    muon.step()
    update = grad.double() * (0.05 + 0.95 * 0.05)  # momentum from zero, Nesterov
    x = update.T / update.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    size = 0.2 * math.sqrt(24) if scale == "adamw" else math.sqrt(24 / 16)
    expected = before * (1 - 0.5 * 0.1) - 0.5 * size * x.T.float()
    step = (expected - before).norm()
    assert (p.detach() - expected).norm() < 0.03 * step


def test_a_paged_optimiser_needs_an_accelerator(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    wanted = job(tiny, dialogues, tmp_path / "out", optimizer="paged_adamw_8bit")
    with pytest.raises(MachineError, match="paged_adamw_8bit runs on cuda or xpu"):
        run(wanted, events.ignore)


def test_a_decay_that_an_optimiser_has_not_is_refused(tiny: Path, dialogues: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.beta1: adafactor has none"):
        job(tiny, dialogues, tiny, optimizer="adafactor", optim={"beta1": 0.5})


def test_wsd_rises_stays_and_falls() -> None:
    optim = Optim(schedule="wsd", warmup=0.1, decay=0.4, min_lr_ratio=0.1)
    curve = [rate(optim, 1.0, step, 20) for step in range(20)]
    assert curve[:2] == [0.5, 1.0]
    assert curve[2:13] == [1.0] * 11
    fall = [0.1 + 0.9 * n / 8 for n in range(7, 0, -1)]
    assert curve[13:] == pytest.approx(fall)


@pytest.mark.parametrize(
    ("optim", "complaint"),
    [
        ({"decay": 0.5}, "a cosine schedule has no such part"),
        ({"schedule": "wsd", "warmup": 0.6, "decay": 0.5}, "longer than the run"),
    ],
)
def test_a_decay_that_cannot_be_is_refused(
    optim: dict[str, Any], complaint: str, tiny: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        job(tiny, tiny, tiny, optim=optim)


def test_the_plan_knows_the_states(tiny: Path, dialogues: Path) -> None:
    def memory(kind: str) -> int:
        return plan(job(tiny, dialogues, tiny, optimizer=kind, tuner="full")).memory_bytes

    facts = plan(job(tiny, dialogues, tiny)).total_parameters
    assert memory("adamw") - memory("adafactor") == pytest.approx(8 * facts, rel=0.01)
    assert memory("adamw") - memory("adamw_8bit") == pytest.approx(6 * facts, rel=0.01)
