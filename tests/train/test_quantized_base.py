"""Adapters on a base that is quantized already, and on linear layers of any class."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_tiny_checkpoint
from tests.train.small import assert_it_learns, job, logits, ours, write_dialogues
from torch import Tensor, nn

from dialoop.core import events
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.models import lora
from dialoop.models.adapted import dense_weight, is_linear
from dialoop.models.load import load_model
from dialoop.train.run import run

pytestmark = pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of kernels a CPU has not


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    return write_dialogues(tmp_path / "data.jsonl")


@pytest.fixture
def four_bits(tiny: Path, tmp_path: Path) -> Path:
    pytest.importorskip("bitsandbytes")
    folder = shutil.copytree(tiny, tmp_path / "four")
    (folder / "model.safetensors").unlink()
    load_model(tiny, device=find("cpu"), dtype="fp32", quantization="nf4").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["lora", "qlora", "dora"])
def test_an_adapter_learns_on_a_quantized_checkpoint(
    kind: str, four_bits: Path, dialogues: Path, tmp_path: Path
) -> None:
    tuner = {"kind": kind, "rank": 4}
    wanted = job(four_bits, dialogues, tmp_path / "out", tuner=tuner)
    assert_it_learns(wanted)
    model = ours(wanted.output)
    layer = next(iter(lora.layers(model).values()))
    assert type(layer.base).__name__ == "Linear4bit"
    assert torch.isfinite(logits(model)).all()


def test_nf4_is_that_of_bitsandbytes(tiny: Path) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    plain = load_model(tiny, device=find("cpu"), dtype="fp32")
    small = load_model(tiny, device=find("cpu"), dtype="fp32", quantization="nf4")
    name = "model.layers.0.mlp.up_proj"
    weight = plain.get_submodule(name).get_parameter("weight").detach()
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    stored: Any = small.get_submodule(name).get_parameter("weight")
    assert torch.equal(stored.data.flatten(), packed.flatten())
    assert torch.equal(
        functional.dequantize_4bit(stored.data, stored.quant_state),
        functional.dequantize_4bit(packed, state),
    )


@pytest.mark.parametrize("kind", ["pissa", "full", "galore"])
def test_tuners_that_need_full_weights_refuse(
    kind: str, four_bits: Path, dialogues: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"by `bitsandbytes`, and {kind} needs the weights in full"):
        run(job(four_bits, dialogues, tmp_path / "out", tuner=kind), events.ignore)


class Packed(nn.Module):
    """A linear layer as quantisers make them: no `weight`, widths by name."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scales", scale)
        self.register_buffer("bias", torch.randn(linear.out_features))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("qweight").to(x.dtype) * self.get_buffer("scales")
        return x @ weight.T + self.get_buffer("bias")


@pytest.mark.parametrize("use_dora", [False, True])
def test_linear_layers_of_any_class_get_an_adapter(use_dora: bool, tiny: Path) -> None:
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    for name, module in list(model.named_modules()):
        if name.endswith("_proj"):
            model.set_submodule(name, Packed(module))  # pyright: ignore[reportArgumentType]
    before = logits(model)
    packed = model.get_submodule("model.layers.0.mlp.up_proj")
    assert is_linear(packed)
    expected = packed.get_buffer("qweight").float() * packed.get_buffer("scales")
    torch.testing.assert_close(dense_weight(packed), expected, rtol=1e-5, atol=1e-5)
    lora.attach(model, lora.LoraConfig(rank=4, use_dora=use_dora))
    assert len(lora.layers(model)) == 14
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    model.train()
    model(torch.arange(5, 20)[None]).logits.sum().backward()
    assert all(layer.lora_B.grad is not None for layer in lora.layers(model).values())
