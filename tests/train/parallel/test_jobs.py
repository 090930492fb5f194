"""However a job is shared out, each step's loss and what it learns are one process's."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import make_tiny_checkpoint
from tests.train.parallel.world import World, world
from tests.train.test_encoders import make_encoder
from tests.train.test_matrix import OBJECTIVES, curve, job
from torch.distributed.tensor import DTensor

from dialoop.core import env, events, jobfile
from dialoop.core.device import find
from dialoop.core.errors import MachineError, UserError
from dialoop.models.load import load_model
from dialoop.train.parallel.fsdp import shard
from dialoop.train.parallel.mesh import layout
from dialoop.train.parallel.team import Team
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "zero2": {"parallel": "zero2"},
    "zero3": {"parallel": "zero3"},
    "gather_kv": {"parallel": "ddp", "sequence_parallel": 2, "sequence_method": "gather_kv"},
    "ulysses": {"parallel": "ddp", "sequence_parallel": 2, "sequence_method": "ulysses"},
    "ring": {"parallel": "ddp", "sequence_parallel": 2, "sequence_method": "ring"},
    "fsdp and ring": {"parallel": "fsdp", "sequence_parallel": 2, "sequence_method": "ring"},
    "zero2 and ulysses": {
        "parallel": "zero2",
        "sequence_parallel": 2,
        "sequence_method": "ulysses",
    },
}
CHECKPOINTED = {("selective", "fsdp"), ("full", "zero2"), ("full", "ring")}
SAMPLED = {
    ("sft", "ddp"), ("sft", "fsdp"), ("kto", "ddp"), ("dpo", "fsdp"), ("dpo", "ring"),
    ("kto", "zero2"), ("orpo", "zero3"),
    ("grpo", "ddp"), ("grpo", "fsdp"), ("gkd", "fsdp"), ("gkd", "ring"),
}  # fmt: skip
STEPS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and beside it a teacher."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_checkpoint(folder / "teacher", seed=1)
    return make_tiny_checkpoint(folder / "model")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIALOOP_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[World]:
    with world(2, tmp_path_factory.mktemp("meet")) as started:
        yield started


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[World]:
    with world(4, tmp_path_factory.mktemp("meet")) as started:
        yield started


def on_a_rank(text: str) -> int:
    return run(jobfile.parse(TrainJob, jobfile.read_yaml(text)), events.ignore).steps


def outcome(wanted: TrainJob, two: World | None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of each step, and the weights at the end."""
    if two is None:
        run(wanted, events.ignore)
    else:
        two(on_a_rank, jobfile.dump(wanted))
    names = {"full": "model.safetensors"}
    weights = load_file(wanted.output / names.get(wanted.tuner.kind, "adapter_model.safetensors"))
    return curve(wanted.output), weights


def own_part(items: list[int]) -> tuple[list[int], list[list[int]]]:
    seen: list[list[int]] = []

    def work(part: Sequence[int]) -> list[int]:
        seen.append(list(part))
        return [n * n for n in part]

    return Team(layout()).spread(items, work), seen


def test_each_rank_does_its_part_and_has_all(two: World) -> None:
    assert two(own_part, [3, 4, 5]) == [([9, 16, 25], [[3, 5]]), ([9, 16, 25], [[4]])]
    assert two(own_part, [3]) == [([9], [[3]]), ([9], [[]])]
    assert Team().spread([3], lambda part: [-n for n in part]) == [-3]


def answers_of_a_shard(folder: Path) -> tuple[bool, bool]:
    model = load_model(folder, device=find("cpu"), dtype="fp32")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model(ids).logits
        root = shard(model, layout(), torch.device("cpu"), None)
        times = 1 + 2 * env.rank()
        found = root.ask_whole(lambda: [model(ids).logits for _ in range(times)][-1])
    is_sharded = all(isinstance(p, DTensor) for p in model.parameters())
    return bool((found - expected).abs().max() < 1e-5), is_sharded


def test_ranks_ask_a_gathered_model_as_often_as_they_like(tiny: Path, two: World) -> None:
    assert two(answers_of_a_shard, tiny) == [(True, True)] * 2


def cells() -> Iterator[Any]:
    for objective in sorted(OBJECTIVES):
        for way in WAYS:
            is_sampled = (objective, way) in SAMPLED
            marks = () if is_sampled else (pytest.mark.matrix,)
            yield pytest.param(objective, way, id=f"{objective}-{way}", marks=marks)


@pytest.mark.parametrize(("objective", "way"), list(cells()))
def test_two_ranks_learn_what_one_does(
    objective: str, way: str, tiny: Path, tmp_path: Path, two: World
) -> None:
    tuner = "full" if way in {"fsdp", "zero2", "zero3"} else "lora"
    found = []
    for name, ranks in (("one", None), ("two", two)):
        is_shared = "sequence_parallel" in WAYS[way]
        accumulate = 4 if ranks is None or is_shared else 2
        changes = {
            "accumulate": accumulate, "max_steps": STEPS, "max_length": 64, "lr": 0.003,
            "optim": {"lr": 0.003, "warmup": 0}, "output": str(tmp_path / name),
        } | ({} if ranks is None else WAYS[way])  # fmt: skip
        found.append(outcome(job(objective, tuner, tiny, tmp_path, **changes), ranks))
    (expected, weights), (got, learned) = found
    assert len(expected) == STEPS
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    norms = [curve(tmp_path / name, "grad_norm") for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    if objective == "grpo":
        samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
        assert samples[0] == samples[1]
    told = ["reward", "own_share", "answer_tokens", "flat_groups"]  # of the answers, by all ranks
    for name in told:
        one, both = (curve(tmp_path / folder, name) for folder in ("one", "two"))
        assert both == pytest.approx(one, rel=1e-5, abs=1e-5)
    for key, value in weights.items():  # Adam makes whole steps of gradients that round to nothing
        assert (learned[key] - value).norm() <= 1e-3 * value.norm() + 1e-6, key


@pytest.mark.parametrize(
    "tuner",
    [
        {"kind": "pissa", "rank": 4},
        pytest.param({"kind": "dora"}, marks=pytest.mark.matrix),
        pytest.param({"kind": "lora", "new_tokens": ["<new>"]}, marks=pytest.mark.matrix),
        pytest.param(
            {"kind": "lora", "modules_to_save": ["embed_tokens"]}, marks=pytest.mark.matrix
        ),
        pytest.param({"kind": "full"}, marks=pytest.mark.matrix),
    ],
    ids=str,
)
def test_the_leader_s_weights_are_everybody_s(tuner: dict, tmp_path: Path, two: World) -> None:
    """Others make the model without numbers; embedding and head are one, positions are scaled."""
    tied = make_tiny_checkpoint(tmp_path / "tied", tied=True)
    changes = {"max_steps": STEPS, "max_length": 64, "optim": {"lr": 0.003, "warmup": 0}}
    changes |= {"rope_scaling": "yarn", "rope_factor": 2.0}
    settings = jobfile.read_yaml(jobfile.dump(job("sft", "lora", tied, tmp_path, **changes)))
    settings |= {"tuner": tuner, "accumulate": 4}
    expected, weights = outcome(jobfile.parse(TrainJob, settings), None)
    settings |= {"accumulate": 2, "output": str(tmp_path / "two"), **WAYS["fsdp"]}
    got, learned = outcome(jobfile.parse(TrainJob, settings), two)
    assert got == pytest.approx(expected, rel=1e-5)
    norms = [curve(tmp_path / name, "grad_norm") for name in ("out", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in learned.items()}


@pytest.mark.parametrize(
    ("mode", "way"),
    [
        pytest.param(mode, way, marks=() if (mode, way) in CHECKPOINTED else pytest.mark.matrix)
        for mode in ("selective", "full")
        for way in WAYS
    ],
)
def test_recomputed_activations_give_the_same_curve(
    mode: str, way: str, tiny: Path, tmp_path: Path, two: World
) -> None:
    changes = {"accumulate": 4, "max_steps": STEPS, "max_length": 64}
    changes |= {"optim": {"lr": 0.003, "warmup": 0}}
    tuner = "full" if way in {"fsdp", "zero2", "zero3"} else "lora"
    one = job("dpo", tuner, tiny, tmp_path, **changes, output=str(tmp_path / "one"))
    expected, _ = outcome(one, None)
    changes["accumulate"] = 4 if "sequence_parallel" in WAYS[way] else 2
    shared = WAYS[way] | {"activation_checkpointing": mode, "output": str(tmp_path / "two")}
    got, _ = outcome(job("dpo", tuner, tiny, tmp_path, **changes, **shared), two)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    norms = [curve(tmp_path / name, "grad_norm") for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of kernels that a CPU has not
@pytest.mark.parametrize(
    ("objective", "way"),
    [
        ("dpo", "fsdp"),
        *(pytest.param(o, w, marks=pytest.mark.matrix)
          for o, w in [("sft", "ddp"), ("sft", "zero2"), ("kto", "fsdp and ring")]),
    ],
)  # fmt: skip
def test_a_four_bit_base_is_shared(
    objective: str, way: str, tiny: Path, tmp_path: Path, two: World
) -> None:
    """Losses and gradient norms of one process, to 1e-5."""
    pytest.importorskip("bitsandbytes")
    found = []
    for name, ranks in (("one", None), ("two", two)):
        is_shared = ranks is None or "sequence_parallel" in WAYS[way]
        changes = {"accumulate": 4 if is_shared else 2, "max_steps": STEPS, "max_length": 64}
        changes |= {"optim": {"lr": 0.003, "warmup": 0}, "output": str(tmp_path / name)}
        wanted = job(objective, "qlora", tiny, tmp_path, **changes | (WAYS[way] if ranks else {}))
        found.append(outcome(wanted, ranks))
    (expected, weights), (got, learned) = found
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    norms = [curve(tmp_path / name, "grad_norm") for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert weights.keys() == learned.keys()


@pytest.mark.parametrize(
    ("objective", "way"), [("dpo", "fsdp"), ("dpo", "zero2"), ("rm", "fsdp"), ("embed", "zero2")]
)
def test_questions_without_a_backward_pass_leave_shards(
    objective: str, way: str, tiny: Path, tmp_path: Path, two: World
) -> None:
    """References before the optimiser is made, and measurements before weights are saved."""
    found = []
    for name, ranks in (("one", None), ("two", two)):
        changes = {"accumulate": 4 if ranks is None else 2, "max_steps": STEPS, "max_length": 64}
        changes |= {"optim": {"lr": 0.003, "warmup": 0}, "output": str(tmp_path / name)}
        changes |= {} if ranks is None else WAYS[way]
        wanted = job(objective, "full", tiny, tmp_path, **changes)
        data = wanted.data.model_copy(update={"validation": 0.25})
        saving = wanted.saving.model_copy(update={"eval_steps": 1})
        found.append(outcome(wanted.model_copy(update={"data": data, "saving": saving}), ranks))
        shutil.rmtree(env.home() / "references", ignore_errors=True)  # each computes them
    (expected, weights), (got, learned) = found
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    measured = [curve(tmp_path / name, "validation_loss") for name in ("one", "two")]
    assert len(measured[0]) == STEPS + 1
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)
    for key, value in weights.items():
        assert (learned[key] - value).norm() <= 1e-3 * value.norm() + 1e-6, key


@pytest.mark.parametrize("way", ["ddp", "fsdp", "zero2", "ring"])
def test_old_and_frozen_probabilities_are_one_process_s(
    way: str, tiny: Path, tmp_path: Path, two: World
) -> None:
    """GRPO with several updates on a step's answers, a reference, and groups drawn anew."""
    found = []
    updates = {"num_answers": 4, "num_iterations": 2, "beta": 0.1, "resamples": 1}
    for name, ranks in (("one", None), ("two", two)):
        changes = {
            "accumulate": 2 if ranks is None or way == "ring" else 1, "max_steps": 2,
            "max_length": 64, "optim": {"lr": 0.003, "warmup": 0}, "output": str(tmp_path / name),
        } | ({} if ranks is None else WAYS[way])  # fmt: skip
        wanted = job("grpo", "full", tiny, tmp_path, **changes)
        objective = wanted.objective.model_copy(update=updates)
        outcome(wanted.model_copy(update={"objective": objective}), ranks)
        told = ["loss", "grad_norm", "reward", "kl", "entropy", "clip_share"]
        found.append([curve(tmp_path / name, value) for value in told])
    assert len(found[0][0]) == 2
    assert found[1] == [pytest.approx(values, rel=1e-4, abs=1e-6) for values in found[0]]


@pytest.mark.parametrize("way", ["ddp", "fsdp", "zero2"])
@pytest.mark.parametrize("is_two_first", [True, False], ids=["2 then 1", "1 then 2"])
def test_another_number_of_ranks_goes_on(
    way: str, is_two_first: bool, tiny: Path, tmp_path: Path, two: World
) -> None:
    def wanted(name: str, is_two: bool, **changes: Any) -> TrainJob:
        parts = {"accumulate": 2, **WAYS[way]} if is_two else {"accumulate": 4}
        return job(
            "sft", "full", tiny, tmp_path, max_length=64, output=str(tmp_path / name),
            optim={"lr": 0.003, "warmup": 0, "schedule": "constant"}, **parts, **changes,
        )  # fmt: skip

    expected, _ = outcome(wanted("whole", False, max_steps=4), None)
    outcome(wanted("parts", is_two_first, max_steps=2), two if is_two_first else None)
    second = wanted("parts", not is_two_first, max_steps=4, resume=True)
    got, _ = outcome(second, None if is_two_first else two)
    assert got == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_after_a_measurement_holds_what_is_trained(
    tiny: Path, tmp_path: Path, two: World
) -> None:
    """In bf16 a measurement gathers copies that are rounded; the shards are float32."""
    wanted = job(
        "sft", "full", tiny, tmp_path, max_length=64, max_steps=2, dtype="bf16",
        data={"dataset": [str(tmp_path / "dialogue.jsonl")], "validation": 0.25},
        saving={"eval_steps": 1, "save_steps": 1}, **WAYS["fsdp"],
    )  # fmt: skip
    two(on_a_rank, jobfile.dump(wanted))
    path = tmp_path / "out" / "checkpoints" / "step-000002" / "trained.safetensors"
    for name, saved in load_file(path).items():
        assert not torch.equal(saved, saved.bfloat16().float()), name


def started(tiny: Path, folder: Path, objective: str = "sft", **changes: Any) -> TrainJob:
    optim = {"lr": 0.003, "warmup": 0}
    return job(
        objective, "lora", tiny, folder, gpus=2, accumulate=1, max_length=64, optim=optim, **changes
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's own logs
def test_gpus_starts_processes_and_hands_on_what_they_report(tiny: Path, tmp_path: Path) -> None:
    told: list[events.Event] = []
    result = run(started(tiny, tmp_path, max_steps=3), told.append)
    assert result.steps == 3
    assert sum(isinstance(event, events.Metrics) for event in told) == 3
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's own logs
def test_a_rank_s_error_is_the_job_s(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sequence_parallel 3 does not divide 2 ranks"):
        run(started(tiny, tmp_path, sequence_parallel=3), events.ignore)


@pytest.mark.parametrize(
    "way", ["torchrun", pytest.param("two machines", marks=pytest.mark.matrix)]
)
def test_others_may_start_the_processes(way: str, tiny: Path, tmp_path: Path) -> None:
    """torch's launcher, or two of ours that meet, as on two machines: one process's curve."""
    changes: dict[str, Any] = {"max_steps": 3, "max_length": 64, "optim": {"lr": 0.003}}
    run(job("sft", "lora", tiny, tmp_path, **changes, accumulate=2), events.ignore)
    expected = curve(tmp_path / "out")
    changes |= {"accumulate": 1, "output": str(tmp_path / "two")}
    dialoop = ["-m", "dialoop.cli.main", "sft", str(tmp_path / "job.yaml")]
    port = free_port()
    if way == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
        commands = [[sys.executable, *torchrun, *dialoop]]
    else:
        changes |= {"nodes": 2, "rendezvous": f"localhost:{port}"}
        commands = [[sys.executable, *dialoop]] * 2
    wanted = job("sft", "lora", tiny, tmp_path, **changes)
    (tmp_path / "job.yaml").write_text(jobfile.dump(wanted))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    try:
        said = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(commands), said
    assert [text.count("trained 3 steps") for text in said] == [1] * len(commands)
    assert curve(tmp_path / "two") == pytest.approx(expected, rel=1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_a_job_that_cannot_be_so_shared_is_refused(tiny: Path, tmp_path: Path, two: World) -> None:
    """Another launcher's number of processes is known only when they run."""
    muon = job("sft", "full", tiny, tmp_path, optimizer={"kind": "muon"}, optim={"lr": 0.003})
    with pytest.raises(AssertionError, match="shards split matrices, which muon must have whole"):
        two(on_a_rank, jobfile.dump(muon))
    three = job("sft", "lora", tiny, tmp_path, gpus=3)
    with pytest.raises(AssertionError, match="asks for 3 processes by gpus and nodes, and 2 were"):
        two(on_a_rank, jobfile.dump(three))


@pytest.mark.matrix
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "embed"])
@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": "ddp", "sequence_parallel": 4, "sequence_method": "usp"},
        {"parallel": "fsdp", "sequence_parallel": 4, "sequence_method": "usp"},
        {"parallel": "zero2", "sequence_parallel": 2, "sequence_method": "gather_kv"},
        {"parallel": "ddp", "sequence_parallel": 4, "sequence_method": "usp",
         "activation_checkpointing": "full"},
    ],
    ids=["usp", "fsdp and usp", "zero2 and 2 x gather_kv", "usp recomputed"],
)  # fmt: skip
def test_four_ranks_learn_what_one_does(
    objective: str, changes: dict[str, Any], tiny: Path, tmp_path: Path, four: World
) -> None:
    common = {"max_steps": STEPS, "max_length": 64, "optim": {"lr": 0.003, "warmup": 0}}
    one = job(objective, "lora", tiny, tmp_path, **common, accumulate=4)
    expected, _ = outcome(one, None)
    accumulate = 4 * changes["sequence_parallel"] // 4
    changes = changes | {"accumulate": accumulate, "output": str(tmp_path / "four")}
    got, _ = outcome(job(objective, "lora", tiny, tmp_path, **common, **changes), four)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    norms = [curve(tmp_path / name, "grad_norm") for name in ("out", "four")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["ddp", "fsdp", "zero2"])
@pytest.mark.parametrize("objective", ["embed", "rerank"])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_two_ranks_share_an_encoder(
    family: str, objective: str, way: str, tmp_path: Path, two: World
) -> None:
    encoder = make_encoder(tmp_path / "model", family)
    config = json.loads((encoder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}  # drawn by each rank
    (encoder / "config.json").write_text(json.dumps(config))
    common = {"max_steps": STEPS, "max_length": 32, "optim": {"lr": 0.003, "warmup": 0}}
    run(job(objective, "full", encoder, tmp_path, **common, accumulate=4), events.ignore)
    changes = common | {"accumulate": 2, "output": str(tmp_path / "two")} | WAYS[way]
    two(on_a_rank, jobfile.dump(job(objective, "full", encoder, tmp_path, **changes)))
    expected, got = (curve(tmp_path / name) for name in ("out", "two"))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def ranks_of(parent: int) -> dict[int, int]:
    """Process ids of a launcher's ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            variables = (path.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [v for v in variables if v.startswith(b"RANK=")]
        if int(fields[1]) == parent and ranks:
            found[int(ranks[0][5:])] = int(path.parent.name)
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's own logs
def test_grpo_goes_on_after_a_rank_was_killed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    saving = {"save_steps": 1, "keep": 99}
    whole = started(tiny, tmp_path, "grpo", max_steps=4, saving=saving)
    run(whole, events.ignore)
    parts = started(tiny, tmp_path / "parts", "grpo", max_steps=4, saving=saving)

    def kill(event: events.Event) -> None:
        if isinstance(event, events.Artifact) and event.path.endswith("step-000002"):
            os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)

    with pytest.raises(MachineError, match="rank 1 of 2 ended by SIGKILL"):
        run(parts, kill)
    run(parts.model_copy(update={"resume": True}), events.ignore)
    one, other = (load_file(p.output / "adapter_model.safetensors") for p in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def running(tiny: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job on two ranks that has begun to train and would go on for long."""
    path = tmp_path / "job.yaml"
    wanted = started(tiny, tmp_path, max_steps=100_000, saving={"save_steps": 100_000})
    path.write_text(jobfile.dump(wanted))
    command = [sys.executable, "-m", "dialoop.cli.main", "sft", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "events.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and '"loss"' in log.read_text()):
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["rank killed", "Ctrl-C"])
def test_when_one_ends_all_end(number: signal.Signals, running: subprocess.Popen[str]) -> None:
    ranks = ranks_of(running.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1] if number == signal.SIGKILL else running.pid, number)
    _, said = running.communicate(timeout=30)
    if number == signal.SIGKILL:
        assert running.returncode == MachineError.exit_code
        assert "rank 1 of 2 ended by SIGKILL; its last words:" in said
    else:
        assert running.returncode == 130
    assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]
