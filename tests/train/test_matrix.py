"""Every objective learns with every tuner: cells are made from the families themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import make_tiny_checkpoint

from dialoop.core import events, jobfile
from dialoop.core.schema import family
from dialoop.data.sample import Kind
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

OBJECTIVES = family("dialoop.train.objectives")
TUNERS = family("dialoop.train.tuners")
NEEDED: dict[str, dict[str, Any]] = {
    "grpo": {
        "rewards": [{"kind": "python", "file": str(Path(__file__).parent / "letter_e.py")}],
        "rollout": {"kind": "policy", "max_new_tokens": 8},
        "num_prompts": 4,
    },
    "gkd": {"teacher": "teacher", "lmbda": 0.5, "rollout": {"kind": "policy", "max_new_tokens": 8}},
}
"""What objectives cannot do without."""
COLORS = ("red", "blue", "green", "white")
RATES = {"freeze": 0.003, "full": 0.005, "lora_plus": 0.002}


def record(kind: Kind, n: int) -> dict[str, Any]:
    """A record of a kind of sample, short enough to be learned by heart."""
    color, other = COLORS[n % 4], "dark"
    messages = [{"role": "user", "content": f"which lamp {n}"}]
    answer = {"role": "assistant", "content": f"the {color} lamp"}
    worse = {"role": "assistant", "content": f"the {other} lamp"}
    match kind:
        case "text":
            return {"text": f"lamp {n} is {color}"}
        case "dialogue" | "prompt":
            return {"messages": [*messages, answer], "label": color}
        case "preference":
            return {"messages": [*messages, answer], "rejected": [[worse]]}
        case "unpaired":
            return {"messages": [*messages, answer if n % 2 else worse], "label": bool(n % 2)}
        case "retrieval":
            return {
                "query": messages,
                "positives": [[{"role": "user", "content": f"{color} lamp"}]],
                "negatives": [[{"role": "user", "content": f"{other} lamp"}]],
            }


def curve(folder: Path, name: str = "loss") -> list[float]:
    """The loss of each step, or another of its numbers."""
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [e["values"][name] for e in lines if e["event"] == "metrics" and name in e["values"]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, and beside it a teacher."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_checkpoint(folder / "teacher", seed=1)
    return make_tiny_checkpoint(folder / "model")


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIALOOP_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def job(objective: str, tuner: str, tiny: Path, folder: Path, **changes: Any) -> TrainJob:
    """A job on eight records that the objective accepts, two packed rows a step."""
    kind = sorted(OBJECTIVES[objective].accepts)[0]  # pyright: ignore[reportAttributeAccessIssue]
    data = folder / f"{kind}.jsonl"
    data.write_text("\n".join(json.dumps(record(kind, n)) for n in range(8)), encoding="utf-8")
    needed = NEEDED.get(objective, {})
    if "teacher" in needed:
        needed = needed | {"teacher": str(tiny.parent / needed["teacher"])}
    wanted: dict[str, Any] = {
        "model": str(tiny), "data": {"dataset": [str(data)], "validation": 0.0},
        "output": str(folder / "out"), "objective": {"kind": objective} | needed,
        "tuner": {"kind": tuner},
        "device": "cpu", "dtype": "fp32", "workers": 1, "threads": 1, "seed": 1,
        "max_length": 128, "accumulate": 2, "max_steps": 8,
        "optim": {"lr": changes.pop("lr", RATES.get(tuner, 0.01)), "warmup": 0},
    }  # fmt: skip
    return jobfile.parse(TrainJob, wanted | changes)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of kernels that a CPU has not
@pytest.mark.parametrize("tuner", sorted(TUNERS))
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_loss_of_a_batch_falls(objective: str, tuner: str, tiny: Path, tmp_path: Path) -> None:
    if TUNERS[tuner].quantization:  # pyright: ignore[reportAttributeAccessIssue]
        pytest.importorskip("bitsandbytes")
    run(job(objective, tuner, tiny, tmp_path), events.ignore)
    if objective == "grpo":  # its loss says nothing of how good the answers are
        rewards = curve(tmp_path / "out", "reward")
        assert max(rewards[-2:]) > rewards[0]
        return
    losses = curve(tmp_path / "out")
    assert min(losses[-2:]) < losses[0]


@pytest.mark.parametrize("objective", ["embed", "kto", "dpo", "rm", "sft"])
def test_accumulation_does_not_change_a_step(objective: str, tiny: Path, tmp_path: Path) -> None:
    """All units in one packed row, or in many: the loss, and the gradient's norm to 1e-4."""

    def first(name: str, **changes: Any) -> tuple[float, float]:
        folder = tmp_path / name
        folder.mkdir()
        run(job(objective, "full", tiny, folder, max_steps=1, **changes), events.ignore)
        return curve(folder / "out")[0], curve(folder / "out", "grad_norm")[0]

    one = first("one", accumulate=1, batch_size=100)
    many = first("many", accumulate=100, max_length=40)
    assert many == pytest.approx(one, rel=1e-4)
