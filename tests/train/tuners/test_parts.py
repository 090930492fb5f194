"""Tuners that move a part of the model: what rests stays as it was, what is saved loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import make_tiny_checkpoint
from tests.train.small import (
    assert_it_learns,
    assert_it_resumes_bit_for_bit,
    job,
    logits,
    ours,
)

from dialoop.core import events
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.models.facts import facts
from dialoop.models.load import load_model
from dialoop.train.run import run
from dialoop.train.tuners.freeze import Freeze
from dialoop.train.tuners.lisa import Lisa

KINDS: dict[str, dict[str, Any]] = {
    "last": {"kind": "freeze", "last_layers": 1},
    "named": {"kind": "freeze", "last_layers": 0, "parameters": ["lm_head", "*layernorm.weight"]},
    "lisa": {"kind": "lisa", "layers": 1, "interval": 2},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny", hidden=32, layers=4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_it_learns_and_saves_a_model_and_resumes(
    name: str, dtype: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    wanted = job(tiny, dialogues, tmp_path / "out", tuner=KINDS[name], dtype=dtype)
    assert_it_learns(wanted)
    theirs = AutoModelForCausalLM.from_pretrained(wanted.output, dtype=torch.float32)
    torch.testing.assert_close(logits(ours(wanted.output)), logits(theirs), atol=1e-5, rtol=1e-5)
    assert_it_resumes_bit_for_bit(wanted, tmp_path / "twice")


def moved(before: Path, after: Path) -> set[str]:
    one = load_file(before / "model.safetensors")
    two = load_file(after / "model.safetensors")
    return {name for name in one if not torch.equal(one[name], two[name])}


def test_only_what_was_chosen_moves(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    run(job(tiny, dialogues, tmp_path / "last", tuner=KINDS["last"], max_steps=1), events.ignore)
    assert all(".layers.3." in name for name in moved(tiny, tmp_path / "last"))
    run(job(tiny, dialogues, tmp_path / "named", tuner=KINDS["named"], max_steps=1), events.ignore)
    names = moved(tiny, tmp_path / "named")
    assert len(names) == 1 + 4 * 2
    assert all(name == "lm_head.weight" or "layernorm" in name for name in names)


def test_lisa_moves_the_drawn_layers_and_both_ends(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    tuner = Lisa(layers=1, interval=2)
    drawn = [tuner.drawn(4, number, 42) for number in range(40)]
    assert all(drawn[n] == drawn[n + 1] for n in range(0, 40, 2))
    assert frozenset().union(*drawn) == {0, 1, 2, 3}
    run(job(tiny, dialogues, tmp_path / "out", tuner=KINDS["lisa"], max_steps=2), events.ignore)
    names = moved(tiny, tmp_path / "out")
    (layer,) = drawn[0]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= names
    assert all(f".layers.{layer}." in name for name in names if ".layers." in name)
    assert any(f".layers.{layer}." in name for name in names)


def test_the_optimiser_forgets_layers_at_rest(tiny: Path) -> None:
    wanted = job(tiny, tiny, tiny / "out", tuner={"kind": "lisa", "layers": 1, "interval": 1})
    model: Any = load_model(tiny, device=find("cpu"), dtype="fp32")
    wanted.tuner.prepare(model, 0)
    optimizer = wanted.tuner.optimizer(model, wanted.optim, wanted.optimizer, 0)
    outside = sum(".layers." not in name for name, _ in model.named_parameters())
    for number in range(6):
        with wanted.tuner.step(model, optimizer, number, 42):
            model(torch.arange(5, 20)[None]).logits.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert len(optimizer.state) == outside + 9
        assert all(p.requires_grad for p in model.parameters())


def test_the_plan_counts_what_moves(tiny: Path) -> None:
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    for tuner in (Freeze(last_layers=1), Freeze(last_layers=0, parameters=["lm_head", "up_proj"])):
        tuner.prepare(model, 0)
        counted = sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim > 1)
        assert tuner.num_trained(facts(tiny)) == counted
    resting = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim > 1)
    total = sum(p.numel() for p in model.parameters())
    assert Lisa(layers=1).num_trained(facts(tiny)) == total - resting * 3 // 4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tuner": {"kind": "freeze", "last_layers": 0}}, "leave nothing to train"),
        ({"tuner": "lisa", "optimizer": "muon"}, "lisa lets the optimiser forget layers"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], complaint: str, tiny: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        job(tiny, tiny, tiny, **changes)


def test_a_pattern_that_names_nothing_and_too_many_layers_are_told(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    with pytest.raises(UserError, match="no parameter matches `nothing`"):
        Freeze(parameters=["nothing"]).prepare(model, 0)
    with pytest.raises(UserError, match=r"tuner\.layers is 5 and the model has 4"):
        Lisa(layers=5).prepare(model, 0)
