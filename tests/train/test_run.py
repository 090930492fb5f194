"""A job end to end on a tiny model: it learns, saves what PEFT loads, and resumes bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import make_tiny_checkpoint

from dialoop.core import device, events, jobfile
from dialoop.core.errors import MachineError, UserError
from dialoop.core.files import lock_folder
from dialoop.models import lora
from dialoop.models.load import load_model
from dialoop.train.run import run
from dialoop.train.spec import TrainJob


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    lines = [
        {"messages": [
            {"role": "user", "content": f"what is the price of lamp {n}"},
            {"role": "assistant", "content": f"lamp {n} costs {n * 3} dollars"},
        ]}
        for n in range(24)
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def job(tiny: Path, dialogues: Path, output: Path, **changes: object) -> TrainJob:
    data = {"dataset": [str(dialogues)], "validation": changes.pop("validation", 0.2)}
    base = {
        "model": str(tiny), "data": data, "output": str(output), "device": "cpu", "dtype": "fp32",
        "max_length": 128, "accumulate": 2, "epochs": 2, "optim": {"lr": 0.01}, "workers": 1,
        "tuner": {"kind": "lora", "rank": 4, "dropout": 0.1}, "threads": 1,
    }  # fmt: skip
    return jobfile.parse(TrainJob, base | changes)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


def test_lora_learns_and_peft_loads_the_result(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    result = run(job(tiny, dialogues, tmp_path / "out", epochs=6), events.ignore)
    curve = [
        json.loads(line)["values"]
        for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()
        if json.loads(line)["event"] == "metrics"
    ]
    held_out = [point["validation_loss"] for point in curve if "validation_loss" in point]
    assert held_out[-1] < 0.9 * held_out[0]
    assert result.validation_loss == min(held_out)
    assert result.report.read_text().startswith("<!doctype html>")

    ids = torch.arange(5, 45)[None]
    ours = load_model(tiny, device=device.find("cpu"), dtype="fp32")
    lora.load(ours, tmp_path / "out")
    theirs = PeftModel.from_pretrained(
        load_model(tiny, device=device.find("cpu"), dtype="fp32"), tmp_path / "out"
    )
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids).logits, theirs.eval()(ids).logits)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_killed_run_resumes_bit_for_bit(
    kind: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    tuner = {"kind": kind} | ({"dropout": 0.1} if kind == "lora" else {})
    saving = {"save_steps": 1, "keep": 1}
    whole = job(tiny, dialogues, tmp_path / "whole", tuner=tuner, saving=saving, epochs=4)
    run(whole, events.ignore)
    killed = job(tiny, dialogues, tmp_path / "killed", tuner=tuner, saving=saving, epochs=4)
    path = tmp_path / "job.yaml"
    path.write_text(jobfile.dump(killed))
    command = [sys.executable, "-m", "dialoop.cli.main", "sft", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(checkpoints.glob("step-*"))
    run(killed.model_copy(update={"resume": True}), events.ignore)

    name = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}[kind]
    expected = load_file(tmp_path / "whole" / name)
    got = load_file(tmp_path / "killed" / name)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_one_output_folder_holds_one_run(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    wanted = job(tiny, dialogues, tmp_path / "out", max_steps=1)
    with lock_folder(tmp_path / "out", "run"), pytest.raises(UserError, match="is in use by"):
        run(wanted, events.ignore)
    run(wanted, events.ignore)
    with pytest.raises(UserError, match="holds an earlier run"):
        run(wanted, events.ignore)


def test_accumulated_batches_have_the_loss_of_one(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    def first_loss(output: str, **changes: object) -> float:
        wanted = job(
            tiny, dialogues, tmp_path / output, max_steps=1, validation=0.0,
            tuner={"kind": "lora"}, **changes,
        )  # fmt: skip
        return run(wanted, events.ignore).train_loss

    many = first_loss("many", accumulate=100)
    one = first_loss("one", accumulate=1, batch_size=100)
    assert many == pytest.approx(one, rel=1e-5)


def test_pre_training_learns_every_token(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    objective = {"kind": "pt"}
    result = run(job(tiny, dialogues, tmp_path / "out", objective=objective), events.ignore)
    assert result.steps > 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_tensorboard_reads_the_curves(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(job(tiny, dialogues, tmp_path / "out"), events.ignore)
    curves = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [point.step for point in curves.Scalars("loss")] == list(range(1, result.steps + 1))
    assert curves.Scalars("validation_loss")


def test_training_stops_early_and_keeps_the_best(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    wanted = job(
        tiny, dialogues, tmp_path / "out", epochs=40, optim={"lr": 0.3, "schedule": "constant"},
        saving={"eval_steps": 1, "patience": 2},
    )  # fmt: skip
    result = run(wanted, events.ignore)
    assert result.best_step is not None
    assert result.steps == result.best_step + 2
    best = tmp_path / "out" / "checkpoints" / f"step-{result.best_step:06d}"
    kept = load_file(best / "trained.safetensors")
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(
        torch.equal(tensor, kept[name.removeprefix("base_model.model.").removesuffix(".weight")])
        for name, tensor in saved.items()
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted only by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error_and_leaves_checkpoints_whole(
    small_disk: Path, tiny: Path, dialogues: Path
) -> None:
    output = small_disk / "out"
    saving = {"save_steps": 1, "keep": 100}
    wanted = job(tiny, dialogues, output, epochs=40, saving=saving, validation=0.0)
    with pytest.raises(MachineError, match="no space left while writing") as caught:
        run(wanted, events.ignore)
    assert caught.value.exit_code == 3
    whole = sorted((output / "checkpoints").glob("step-*"))
    assert whole
    assert not list((output / "checkpoints").glob(".tmp-*"))
    for path in whole[1:]:
        shutil.rmtree(path)
    resumed = wanted.model_copy(update={"resume": True, "max_steps": 3})
    assert run(resumed, events.ignore).steps == 3


def test_a_folder_that_may_not_be_written_is_one_clear_error(
    small_disk: Path, tiny: Path, dialogues: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(MachineError, match="no permission while opening"):
        run(job(tiny, dialogues, small_disk / "out"), events.ignore)


def test_a_damaged_checkpoint_is_named(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    wanted = job(tiny, dialogues, tmp_path / "out", max_steps=1)
    run(wanted, events.ignore)
    path = next((tmp_path / "out" / "checkpoints").glob("step-*"))
    weights = path / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=f"checkpoint `{path}` is damaged"):
        run(wanted.model_copy(update={"resume": True}), events.ignore)


def test_a_length_above_the_model_s_is_refused(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_length 100000 is above the model's"):
        run(job(tiny, dialogues, tmp_path / "out", max_length=100_000), events.ignore)


def test_token_bounds_of_cleaning_use_the_model_s_tokenizer(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    data = {"dataset": [str(dialogues)], "cleaning": {"max_tokens": 1}}
    with pytest.raises(UserError, match="gives no usable row"):
        run(job(tiny, dialogues, tmp_path / "out", data=data), events.ignore)


def test_a_run_that_failed_before_its_first_checkpoint_leaves_the_folder_free(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    tuner = {"kind": "lora", "target_modules": ["nothing"]}
    with pytest.raises(UserError, match="matches the LoRA target `nothing`"):
        run(job(tiny, dialogues, tmp_path / "out", tuner=tuner), events.ignore)
    assert run(job(tiny, dialogues, tmp_path / "out", max_steps=1), events.ignore).steps == 1


def test_a_run_of_few_steps_is_told(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    told: list[events.Event] = []
    run(job(tiny, dialogues, tmp_path / "few", max_steps=2), told.append)
    warnings = [e.text for e in told if isinstance(e, events.Note) and e.level == "warning"]
    assert any("2 optimiser steps, which teach little" in text for text in warnings)


def test_shards_on_one_process_are_refused(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to share a model with"):
        run(job(tiny, dialogues, tmp_path / "out", parallel="fsdp"), events.ignore)
