"""ZeRO as DeepSpeed computes it: the same model, batches and AdamW give the same curve.

Needs the package `deepspeed` (0.19.8 was compared), which compiles an operator at its first use.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_tiny_checkpoint
from tests.train.parallel.world import World, world
from tests.train.small import losses
from tests.train.test_matrix import curve

from dialoop.chat.template import Template
from dialoop.core import events, jobfile
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

pytest.importorskip("deepspeed")

STEPS, RATE, DECAY, CLIP = 5, 3e-3, 0.1, 0.5
TEXTS = ("the lamp is red and warm", "one lamp is blue")


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    with world(2, tmp_path) as started:
        yield started


def ours(text: str) -> None:
    run(jobfile.parse(TrainJob, jobfile.read_yaml(text)), events.ignore)


def theirs(stage: int, tiny: str, rows: list[list[int]]) -> tuple[list[float], list[float]]:
    """The loss of each step and the gradient's norm; each rank has one of the rows."""
    import deepspeed  # pyright: ignore[reportMissingImports] - of one's own accord
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    deepspeed.init_distributed("gloo")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    engine: Any = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95)),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": CLIP,
        },
    )[0]
    ids = torch.tensor(rows[dist.get_rank()])[None]
    total = sum(len(row) - 1 for row in rows)
    found, norms = [], []
    for _ in range(STEPS):
        logits = engine(input_ids=ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / total
        engine.backward(2 * loss)  # it takes the mean over two ranks
        engine.step()
        both = loss.detach().clone()
        dist.all_reduce(both)
        found.append(float(both))
        norms.append(float(engine.get_global_grad_norm()))
    return found, norms


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_is_deepspeed_s(stage: int, tmp_path: Path, two: World) -> None:
    """Losses to 1e-5, gradient norms to 1e-4, with clipping and decay, in float32."""
    tiny = make_tiny_checkpoint(tmp_path / "tiny")
    template = Template.from_folder(tiny)
    rows = [template.text_row(text) for text in TEXTS]
    data = tmp_path / "texts.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    wanted = {
        "model": str(tiny), "data": {"dataset": [str(data)], "validation": 0.0},
        "output": str(tmp_path / "out"), "objective": {"kind": "pt"}, "tuner": {"kind": "full"},
        "optim": {"lr": RATE, "warmup": 0, "schedule": "constant", "weight_decay": DECAY,
                  "max_grad_norm": CLIP},
        "parallel": f"zero{stage}", "device": "cpu", "dtype": "fp32", "workers": 1, "threads": 1,
        "accumulate": 1, "max_steps": STEPS, "max_length": max(len(row.ids) for row in rows),
    }  # fmt: skip
    two(ours, jobfile.dump(jobfile.parse(TrainJob, wanted)))
    (expected, norms), _ = two(theirs, stage, str(tiny), [row.ids.tolist() for row in rows])
    assert expected[-1] < 0.9 * expected[0]
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-5)
    assert curve(tmp_path / "out", "grad_norm") == pytest.approx(norms, rel=1e-4)
