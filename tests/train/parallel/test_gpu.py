"""Shards on one GPU: the sharded path by NCCL, and states that lie on the host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import make_tiny_checkpoint
from tests.train.test_matrix import curve, job
from tests.train.test_packing import documents

from dialoop.core import events
from dialoop.core.device import find
from dialoop.models.load import load_model
from dialoop.train.batch import Step, collate
from dialoop.train.parallel import fsdp
from dialoop.train.parallel.mesh import joined, layout
from dialoop.train.run import run
from dialoop.train.spec import TrainJob
from dialoop.train.view import View, use_packed_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # of NCCL, with one rank
]
STEPS = 4
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


def wanted(objective: str, tuner: str, tiny: Path, folder: Path, **changes: Any) -> TrainJob:
    optim = {"lr": 0.003, "warmup": 0, "schedule": "constant"}
    common = {"device": "cuda", "max_steps": STEPS, "max_length": 64, "optim": optim}
    made = job(objective, tuner, tiny, folder, **common | changes)
    data = made.data.model_copy(update={"validation": 0.25})
    saving = made.saving.model_copy(update={"save_steps": 2, "eval_steps": 2})
    return made.model_copy(update={"data": data, "saving": saving})


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("parallel", ["zero2", "zero3"])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("tuner", ["full", "lora", "qlora"])
def test_states_on_the_host_give_the_same_curve(
    tuner: str, objective: str, parallel: str, dtype: str, tiny: Path, tmp_path: Path
) -> None:
    if tuner == "qlora":
        pytest.importorskip("bitsandbytes")
    runs = {"plain": {}, "away": {"parallel": parallel, "offload": True}}
    for name, changes in runs.items():
        changes = changes | {"output": str(tmp_path / name), "dtype": dtype}
        run(wanted(objective, tuner, tiny, tmp_path, **changes), events.ignore)
    for metric in ("loss", "validation_loss"):
        plain, away = (curve(tmp_path / name, metric) for name in runs)
        assert len(away) == len(plain) >= 2
        assert away == pytest.approx(plain, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    name = "model.safetensors" if tuner == "full" else "adapter_model.safetensors"
    before, after = (load_file(tmp_path / folder / name) for folder in runs)
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {
        k: (v.shape, v.dtype) for k, v in after.items()
    }


def test_states_on_the_host_resume(tiny: Path, tmp_path: Path) -> None:
    shared = {"parallel": "zero3", "offload": True, "dtype": "fp32"}
    run(wanted("sft", "full", tiny, tmp_path, **shared), events.ignore)
    parts = shared | {"output": str(tmp_path / "parts")}
    run(wanted("sft", "full", tiny, tmp_path, **parts, max_steps=2), events.ignore)
    run(wanted("sft", "full", tiny, tmp_path, **parts, resume=True), events.ignore)
    assert curve(tmp_path / "parts") == pytest.approx(curve(tmp_path / "out"), rel=1e-5)


def test_states_on_the_host_leave_the_gpu_free(tmp_path: Path) -> None:
    """16 bytes a parameter and bf16 copies lie elsewhere; tables and two layers are here."""
    wide = make_tiny_checkpoint(tmp_path / "wide", hidden=512, layers=12)
    peaks = []
    for name, changes in {"plain": {}, "away": {"parallel": "zero3", "offload": True}}.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        changes = changes | {"output": str(tmp_path / name), "dtype": "bf16"}
        run(wanted("sft", "full", wide, tmp_path, **changes), events.ignore)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0] / 3


@pytest.mark.parametrize("frees", [True, False], ids=["zero3", "zero2"])
@pytest.mark.parametrize("offload", [False, True], ids=["here", "away"])
def test_one_rank_by_nccl_gives_the_gradients_of_none(
    offload: bool, frees: bool, tiny: Path
) -> None:
    """Twice in float32, so that gradients add up over two passes, to 1e-5."""
    place = torch.device("cuda", 0)
    batch = collate(documents([20, 1, 33]), place, Step(54.0, 3))

    def gradients(view: View) -> dict[str, torch.Tensor]:
        for _ in range(2):
            batch.token_mean(view.token_nll(batch)).backward()
        parameters = view.model.named_parameters()
        return {name: fsdp.whole(p.grad).cpu() for name, p in parameters if p.grad is not None}

    plain = load_model(tiny, device=find("cuda:0"), dtype="fp32").train()
    use_packed_attention(plain)
    expected = gradients(View(plain))
    model = load_model(tiny, device=find("cpu"), dtype="fp32").train()
    use_packed_attention(model)
    with joined("cuda", 0):
        root = fsdp.shard(model, layout(), place, None, frees=frees, offload=offload)
        with torch.no_grad():
            View(model, root=root).token_nll(batch)
        kept = {p.device.type for p in model.parameters()}
        assert kept == {"cpu" if offload else "cuda"}
        got = gradients(View(model, root=root))
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)
