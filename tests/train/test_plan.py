"""A plan tells what a job would do, without weights and without the device."""

import json
from pathlib import Path

import pytest

from dialoop.core import jobfile
from dialoop.core.errors import UserError
from dialoop.train.plan import measured_flops, plan
from dialoop.train.spec import TrainJob

GIB = 2**30


def job(**changes: object) -> TrainJob:
    base = {
        "model": "internlm3-8b", "data": {"dataset": ["alpaca-en"]}, "output": "out",
        "activation_checkpointing": "none",
    }  # fmt: skip
    return jobfile.parse(TrainJob, base | changes)


def test_it_counts_what_lora_adds_to_every_linear_layer() -> None:
    told = plan(job(tuner={"kind": "lora", "rank": 16}, device="cpu"))
    widths = 2 * (4096 + 4096) + 2 * (4096 + 256) + 3 * (4096 + 10240)
    assert told.trained_parameters == 16 * 48 * widths
    assert told.total_parameters == pytest.approx(8.8e9, rel=0.01)


def test_memory_is_near_what_was_measured_on_an_h100() -> None:
    """52.2 GiB allocated at 4096 tokens a row, rank 16, bf16 (docs/experiments.md)."""
    wanted = job(max_length=4096, dtype="bf16", tuner={"kind": "lora", "rank": 16})
    assert plan(wanted).memory_bytes / GIB == pytest.approx(52.2, rel=0.05)


def test_four_bits_and_recomputing_save_memory() -> None:
    plain = plan(job(dtype="bf16")).memory_bytes
    four_bits = plan(job(dtype="bf16", tuner={"kind": "qlora"})).memory_bytes
    recomputing = plan(job(dtype="bf16", activation_checkpointing="full")).memory_bytes
    assert four_bits < plain - 9 * GIB
    assert recomputing < plain - 10 * GIB


def test_what_fits_decides_what_is_recomputed() -> None:
    small = plan(job(activation_checkpointing="auto", device="cpu", max_length=16, model="starter"))
    large = plan(
        job(activation_checkpointing="auto", device="cpu", max_length=32768, batch_size=64)
    )
    assert small.lines["activations"].startswith("none:")
    assert large.lines["activations"].startswith("full:")


def test_a_job_too_large_for_its_device_is_told() -> None:
    told = plan(job(device="cpu", tuner={"kind": "full"}, max_length=32768, batch_size=64))
    assert "THE JOB MAY NOT FIT" in told.lines["device"]


def test_what_is_not_known_is_said() -> None:
    told = plan(job(device="cuda:77"))
    assert told.lines["device"].startswith("device `cuda:77` is not on this machine")
    assert told.lines["time"] == "unknown until the data is here: alpaca-en"


def test_time_is_proportional_to_the_data(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"text": "a" * 3_999_989}), encoding="utf-8")
    told = plan(job(model="starter", data={"dataset": [str(path)]}, device="cpu", epochs=2))
    assert "2,000,00" in told.lines["time"]
    capped = plan(
        job(model="starter", data={"dataset": [str(path)]}, device="cpu", max_steps=1, accumulate=1)
    )
    assert "for some 2,048 tokens" in capped.lines["time"]


def test_the_rate_of_this_machine_is_plausible() -> None:
    assert 1e9 < measured_flops("cpu", "fp32") < 1e15


@pytest.mark.parametrize(
    "changes",
    [
        {"tuner": {"kind": "galore"}, "parallel": "fsdp"},
        {"tuner": {"kind": "lisa"}, "parallel": "zero2"},
        {"tuner": {"kind": "full"}, "optimizer": {"kind": "adamw_8bit"}},
        {"tuner": {"kind": "full"}, "optimizer": {"kind": "muon"}},
    ],
)
def test_shards_of_matrices_are_refused_where_whole_ones_are_needed(changes: dict) -> None:
    with pytest.raises(UserError, match="must have whole; use ddp"):
        job(gpus=2, **changes)
    job(gpus=2, **(changes | {"parallel": "ddp"}))


def test_shards_leave_room_for_activations() -> None:
    """InternLM3-8B in full: 16 bytes a parameter and a bf16 copy fit no 80 GB card, eighths do."""
    full = {"tuner": {"kind": "full"}, "dtype": "bf16", "device": "cpu", "max_length": 16}
    one, two, eight = (plan(job(**full, gpus=n)).memory_bytes for n in (1, 2, 8))
    assert one > 140e9
    assert 0.45 * one < two < 0.6 * one
    assert 0.1 * one < eight < 0.2 * one
    kept = plan(job(**full, gpus=8, parallel="zero2")).memory_bytes
    assert 10e9 < kept - eight < 16e9  # a bf16 copy of 48 layers, less two of them
    away = plan(job(**(full | {"device": "cuda"}), offload=True))
    assert away.memory_bytes < 6e9
    assert "in the host's memory" in away.lines["memory"]


SAMPLES = {"kind": "grpo", "rewards": [{"kind": "length"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offload": True, "parallel": "ddp"}, "ddp keeps no shards"),
        ({"offload": True, "device": "cpu"}, "a job on the CPU has everything there"),
        ({"offload": True, "objective": SAMPLES}, "grpo samples answers"),
        ({"reference": "live"}, "sft has none to choose"),
        ({"sequence_method": "ring"}, "set sequence_parallel"),
    ],
)
def test_settings_that_would_say_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        job(**changes)
