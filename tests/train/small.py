"""Small training jobs on a tiny model, and what tests ask of every tuner and optimiser."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dialoop.core import events, jobfile
from dialoop.core.device import find
from dialoop.models.load import load_model
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

IDS = torch.arange(5, 45)[None]


def write_dialogues(path: Path, num: int = 12) -> Path:
    lines = [
        {"query": f"price of lamp {n}", "response": f"lamp {n} costs {n * 3} dollars"}
        for n in range(num)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def job(model: Path, data: Path, output: Path, **changes: Any) -> TrainJob:
    base: dict[str, Any] = {
        "model": str(model), "data": {"dataset": [str(data)]}, "output": str(output),
        "device": "cpu", "dtype": "fp32", "max_length": 128, "accumulate": 1, "epochs": 6,
        "optim": {"lr": 0.01}, "workers": 1, "threads": 1,
    }  # fmt: skip
    return jobfile.parse(TrainJob, base | changes)


def losses(output: Path) -> list[float]:
    """The loss of each step; of a step that was done twice, the last."""
    found: dict[int, float] = {}
    for line in (output / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "metrics" and "loss" in event["values"]:
            found[event["step"]] = event["values"]["loss"]
    return [found[step] for step in sorted(found)]


def assert_it_learns(wanted: TrainJob, share: float = 0.9) -> None:
    run(wanted, events.ignore)
    curve = losses(wanted.output)
    assert curve[-1] < share * curve[0], curve


class Stopped(Exception):  # noqa: N818
    """A run that breaks off."""


def assert_it_resumes_bit_for_bit(wanted: TrainJob, output: Path, *, steps: int = 3) -> None:
    """The run in two parts ends with the weights and losses of `wanted`, which has run."""
    first = wanted.model_copy(update={
        "output": output, "saving": wanted.saving.model_copy(update={"save_steps": 1}),
    })  # fmt: skip

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Artifact) and event.path.endswith(f"step-{steps:06d}"):
            raise Stopped

    with pytest.raises(Stopped):
        run(first, stop)
    run(first.model_copy(update={"resume": True}), events.ignore)
    assert losses(output) == losses(wanted.output)
    for path in wanted.output.glob("*.safetensors"):
        expected, got = load_file(path), load_file(output / path.name)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(IDS).logits


def ours(folder: Path) -> torch.nn.Module:
    return load_model(folder, device=find("cpu"), dtype="fp32")
