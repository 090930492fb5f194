"""Adapters on a 4-bit base: the base is NF4, what is learned is saved as PEFT reads it."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core import device, events, jobfile
from dialoop.models import lora
from dialoop.models.load import load_model
from dialoop.train.packed import repack
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

pytest.importorskip("bitsandbytes")


@pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of kernels that a CPU has not
def test_a_packed_layer_is_the_one_that_it_was_made_of(tmp_path: Path) -> None:
    """NF4 doubly quantised: output and gradient, before and after a question without one."""
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    x = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(0))
    place = device.find("cpu")
    model = load_model(folder, device=place, dtype="fp32", quantization="nf4").train()
    theirs = model.get_submodule("model.layers.0.mlp.up_proj")
    wanted = theirs(given := x.clone().requires_grad_())
    wanted.sum().backward()
    repack(model)
    ours = model.get_submodule("model.layers.0.mlp.up_proj")
    for _ in range(2):
        got = ours(mine := x.clone().requires_grad_())
        got.sum().backward()
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        torch.testing.assert_close(mine.grad, given.grad, rtol=0, atol=0)
        with torch.no_grad():
            ours.eval()(x)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of kernels that a CPU has not
def test_qlora_learns_on_a_four_bit_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    tiny = tmp_path / "tiny"
    make_tiny_checkpoint(tiny)
    data = tmp_path / "data.jsonl"
    lines = [{"query": f"price of lamp {n}", "response": f"{n} dollars"} for n in range(16)]
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    wanted = jobfile.parse(TrainJob, {
        "model": str(tiny), "data": {"dataset": [str(data)]}, "output": str(tmp_path / "out"),
        "tuner": {"kind": "qlora", "rank": 4}, "optim": {"lr": 0.02}, "epochs": 12, "workers": 1,
        "accumulate": 1, "max_length": 128, "device": "cpu", "dtype": "fp32",
    })  # fmt: skip
    run(wanted, events.ignore)
    curve = [
        json.loads(line)["values"]["loss"]
        for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()
        if '"loss"' in line
    ]
    assert curve[-1] < 0.9 * curve[0]

    base = load_model(tiny, device=device.find("cpu"), dtype="fp32", quantization="nf4")
    lora.load(base, tmp_path / "out")
    layer = next(iter(lora.layers(base).values()))
    assert type(layer.base).__name__ == "Linear4bit"
    assert layer.lora_B.abs().sum() > 0
    with torch.no_grad():
        assert torch.isfinite(base(torch.arange(5, 20)[None]).logits).all()
