"""A stretched model reads what its config says, and an adapter brings its scaling along."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core import device, events, jobfile
from dialoop.core.errors import UserError
from dialoop.models import rope
from dialoop.models.load import load_model
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def load(folder: Path) -> Any:
    return load_model(folder, device=device.find("cpu"), dtype="fp32")


def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, **inputs).logits


def test_linear_scaling_reads_positions_that_are_closer_together(tiny: Path) -> None:
    scaled = load(tiny)
    rope.scale(scaled, "linear", 4.0)
    between = torch.arange(40)[None] / 4
    torch.testing.assert_close(logits(scaled), logits(load(tiny), position_ids=between))
    assert rope.longest(scaled) == 4 * 512


def test_dynamic_scaling_leaves_short_documents_alone(tiny: Path) -> None:
    scaled = load(tiny)
    rope.scale(scaled, "dynamic", 2.0)
    torch.testing.assert_close(logits(scaled), logits(load(tiny)))
    assert rope.longest(scaled) == 2 * 512


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_a_saved_model_is_scaled_for_everybody(
    kind: rope.RopeScaling, tiny: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    scaled = load(tiny)
    rope.scale(scaled, kind, 2.0)
    scaled.save_pretrained(tmp_path)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(scaled))


def test_scaling_twice_is_refused(tiny: Path) -> None:
    model = load(tiny)
    rope.scale(model, "yarn", 2.0)
    with pytest.raises(UserError, match="scaled already"):
        rope.scale(model, "yarn", 2.0)


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_run_reads_longer_than_the_model_did(
    tuner: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"lamp {n} " * 150}) for n in range(3)))
    wanted = {
        "model": str(tiny), "data": {"dataset": [str(data)]}, "output": str(tmp_path / "out"),
        "objective": {"kind": "pt"}, "tuner": {"kind": tuner}, "max_length": 1024, "max_steps": 1,
        "device": "cpu", "dtype": "fp32", "workers": 1, "rope_scaling": "yarn", "rope_factor": 2,
    }  # fmt: skip
    with pytest.raises(UserError, match="above the model's 512 positions"):
        run(
            jobfile.parse(TrainJob, wanted | {"rope_scaling": "none", "rope_factor": None}),
            events.ignore,
        )
    run(jobfile.parse(TrainJob, wanted), events.ignore)
    tuned = load(tmp_path / "out")
    assert rope.longest(tuned) == 1024
    assert tuned.config.rope_parameters["rope_type"] == "yarn"


def test_a_factor_without_scaling_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="one says nothing without the other"):
        jobfile.parse(TrainJob, {
            "model": "x", "data": {"dataset": ["y"]}, "output": "z", "rope_factor": 4,
        })  # fmt: skip
