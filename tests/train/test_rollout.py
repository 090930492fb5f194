"""Rollouts: samples follow the model, seeds repeat them, and a run that goes on is the same run."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import make_tiny_checkpoint

from dialoop.core import events, jobfile
from dialoop.core.device import find
from dialoop.core.errors import MachineError, UserError
from dialoop.data.units import Row, Unit
from dialoop.models.load import load_model
from dialoop.train.online import answered, prompt_of
from dialoop.train.rollouts import Answer, Policy
from dialoop.train.rollouts.policy import InProcess, PolicyRollout
from dialoop.train.rollouts.vllm import VllmRollout
from dialoop.train.run import run
from dialoop.train.schedule import shared_bins
from dialoop.train.spec import TrainJob
from dialoop.train.tuners.lora import Lora
from dialoop.train.view import use_packed_attention

REWARD = Path(__file__).parent / "letter_e.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", hidden=32)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


def policy(tiny: Path, *, stop_ids: tuple[int, ...] = (2,)) -> Policy:
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    use_packed_attention(model)
    return Policy(model.train(), stop_ids, Lora(), tiny, "fp32", None, 64)


PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 9, 6)]
SEEDS = [0, 1, 2]


def sampler(tiny: Path, *, stop_ids: tuple[int, ...] = (2,), **settings: Any) -> InProcess:
    return PolicyRollout(**settings).open(policy(tiny, stop_ids=stop_ids))


def test_likeliest_tokens_are_those_of_a_plain_forward_pass(tiny: Path) -> None:
    found = sampler(tiny, max_new_tokens=6, top_k=1).sample(PROMPTS, 2, SEEDS)
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    for prompt, answers in zip(PROMPTS, found, strict=True):
        ids = prompt.tolist()
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
        for answer in answers:
            assert answer.ids.tolist() == ids[len(prompt) :]
            assert answer.is_complete == (ids[-1] == 2)


def test_samples_follow_the_model_s_distribution(tiny: Path) -> None:
    found = sampler(tiny, max_new_tokens=1, temperature=0.5, batch_size=4000).sample(
        PROMPTS[:1], 4000, SEEDS[:1]
    )
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    with torch.no_grad():
        p = (model(torch.tensor([PROMPTS[0].tolist()])).logits[0, -1] / 0.5).softmax(-1)
    drawn = torch.bincount(torch.tensor([int(a.ids[0]) for a in found[0]]), minlength=len(p)) / 4000
    assert float((drawn - p).abs().max()) < 4 * (0.25 / 4000) ** 0.5


def test_an_answer_depends_on_its_prompt_and_seed_alone(tiny: Path) -> None:
    def ids(places: list[int], seeds: list[int], **settings: Any) -> list[list[list[int]]]:
        wanted = sampler(tiny, max_new_tokens=5, **settings)
        torch.rand(7)
        found = wanted.sample([PROMPTS[n] for n in places], 3, seeds)
        return [[a.ids.tolist() for a in answers] for answers in found]

    first = ids([0, 1, 2], [7, 8, 9])
    assert ids([2, 0], [9, 7]) == [first[2], first[0]]
    assert ids([0, 1, 2], [7, 8, 9], batch_size=1) == first
    assert ids([0], [8]) != first[:1]
    assert len(set(map(tuple, first[0]))) > 1
    assert ids([], []) == []


def test_an_answer_ends_at_a_stop_token_and_the_others_go_on(tiny: Path) -> None:
    stops = tuple(range(2, 120))
    found = sampler(tiny, max_new_tokens=12, stop_ids=stops).sample(PROMPTS, 8, SEEDS)
    answers = [a for group in found for a in group]
    assert len({len(a.ids) for a in answers}) > 2
    for answer in answers:
        is_stop = np.isin(answer.ids, stops)
        assert not is_stop[:-1].any()
        assert is_stop[-1] == answer.is_complete


def test_nucleus_sampling_leaves_the_tail_out(tiny: Path) -> None:
    found = sampler(tiny, max_new_tokens=1, top_p=0.3).sample(PROMPTS[:1], 200, SEEDS[:1])
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    with torch.no_grad():
        p = model(torch.tensor([PROMPTS[0].tolist()])).logits[0, -1].softmax(-1)
    ranked, order = p.sort(descending=True)
    allowed = set(order[(ranked.cumsum(0) - ranked) < 0.3].tolist())
    assert {int(a.ids[0]) for a in found[0]} <= allowed


def test_the_model_is_left_as_it_was(tiny: Path) -> None:
    own = policy(tiny)
    before = own.model.config._attn_implementation
    PolicyRollout(max_new_tokens=2).open(own).sample(PROMPTS, 2, SEEDS)
    assert own.model.training
    assert own.model.config._attn_implementation == before


def test_a_prompt_is_what_stands_before_the_last_answer() -> None:
    ids = np.arange(8, dtype=np.int32)
    weights = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.float32)
    assert prompt_of(Unit((Row(ids, weights),))).tolist() == [0, 1, 2, 3, 4, 5]
    assert prompt_of(Unit((Row(ids, weights * 0),))).tolist() == ids.tolist()
    unit = answered(ids[:3], Answer(ids[5:7], True), value=0.5)
    assert unit.rows[0].weights.tolist() == [0, 0, 0, 1, 1]
    assert prompt_of(unit).tolist() == [0, 1, 2]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_is_refused_where_it_is_not(tiny: Path) -> None:
    with pytest.raises(MachineError, match="vllm"):
        VllmRollout().open(policy(tiny))


def job(tiny: Path, folder: Path, output: str, **changes: Any) -> TrainJob:
    data = folder / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"lamp {n}"}], "id": n} for n in range(12)]
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    objective = {
        "kind": "grpo", "num_prompts": 2, "num_answers": 4,
        "rewards": [{"kind": "python", "file": str(REWARD)}],
        "rollout": {"kind": "policy", "max_new_tokens": 6},
    } | changes.pop("objective", {})  # fmt: skip
    wanted: dict[str, Any] = {
        "model": str(tiny), "data": {"dataset": [str(data)], "validation": 0.0},
        "output": str(folder / output), "objective": objective, "device": "cpu", "dtype": "fp32",
        "workers": 1, "threads": 1, "max_length": 64, "accumulate": 1, "max_steps": 6,
        "optim": {"lr": 0.02, "warmup": 0, "schedule": "constant"},
    }  # fmt: skip
    return jobfile.parse(TrainJob, wanted | changes)


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line["values"] for line in lines if line["event"] == "metrics"]


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_run_that_goes_on_is_the_same_run(tuner: str, tiny: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "objective": {"num_iterations": 2, "beta": 0.1, "resamples": 1},
        "tuner": {"kind": tuner} | ({"dropout": 0.1} if tuner == "lora" else {}),
        "saving": {"save_steps": 1, "keep": 9},
    }
    whole = job(tiny, tmp_path, "whole", **changes)
    run(whole, events.ignore)
    broken = job(tiny, tmp_path, "broken", **changes)
    run(broken, events.ignore)
    for path in (tmp_path / "broken" / "checkpoints").glob("step-*"):
        if path.name > "step-000002":
            shutil.rmtree(path)
    run(broken.model_copy(update={"resume": True}), events.ignore)
    name = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}[tuner]
    one, other = (load_file(tmp_path / folder / name) for folder in ("whole", "broken"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_micro_batches_do_not_change_a_step(tiny: Path, tmp_path: Path) -> None:
    found = []
    for name, size in (("one", 100), ("many", 1)):
        changes = {"max_steps": 1, "batch_size": size, "max_length": 32}
        run(job(tiny, tmp_path, name, **changes), events.ignore)
        found.append(metrics(tmp_path / name)[0])
    for key in ("loss", "grad_norm", "reward", "entropy"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4, abs=1e-6)


def test_a_step_tells_of_rewards_and_shows_samples(tiny: Path, tmp_path: Path) -> None:
    held_out = {"data": {"dataset": [str(tmp_path / "prompts.jsonl")], "validation": 0.25}}
    result = run(job(tiny, tmp_path, "out", **held_out), events.ignore)
    told = metrics(tmp_path / "out")
    first = next(values for values in told if "reward" in values)
    assert first["reward"] == pytest.approx(first["reward_letter_e"])
    assert {"reward_std", "flat_groups", "answer_tokens", "clip_share", "entropy"} <= first.keys()
    shown = list(map(json.loads, (tmp_path / "out" / "samples.jsonl").read_text().splitlines()))
    assert shown[0]["step"] == 1
    assert shown[0]["prompt"].startswith("lamp")
    assert shown[0]["rewards"].keys() == {"letter_e"}
    before, *measured = [values for values in told if "validation_reward" in values]
    assert result.validation_before == -before["validation_reward"]
    assert result.validation_loss == -max(values["validation_reward"] for values in measured)


def test_flat_groups_are_replaced_up_to_a_limit(tiny: Path, tmp_path: Path) -> None:
    equal = tmp_path / "equal.py"
    equal.write_text("def reward(prompt, answer, sample):\n    return float(sample['id'] > 8)\n")
    rewards = [{"kind": "python", "file": str(equal)}]
    changes = {"objective": {"rewards": rewards, "resamples": 2}, "max_steps": 1}
    run(job(tiny, tmp_path, "out", **changes), events.ignore)
    first = metrics(tmp_path / "out")[0]
    assert first["flat_groups"] == 1
    assert first["loss"] == pytest.approx(0, abs=1e-7)


def test_errors_of_a_reward_end_the_run_with_file_and_line(tiny: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def reward(prompt, answer, sample):\n    return sample['nothing']\n")
    changes = {"objective": {"rewards": [{"kind": "python", "file": str(bad)}]}}
    with pytest.raises(UserError, match=r"bad\.py`, line 2: KeyError: 'nothing'"):
        run(job(tiny, tmp_path, "out", **changes), events.ignore)


def test_prompts_cannot_be_cut(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a prompt cannot be cut"):
        job(tiny, tmp_path, "out", overlong="truncate")


def test_prompts_and_answers_must_fit_the_model(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_length with max_new_tokens is 518, above"):
        run(job(tiny, tmp_path, "out", max_length=512), events.ignore)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpus": 2, "parallel": "fsdp"}, "is given whole weights, which shards are not"),
        ({"gpus": 2, "tuner": {"kind": "full"}}, "is given whole weights, which shards are not"),
        ({"rope_scaling": "linear", "rope_factor": 2}, "without rope_scaling"),
        ({"tuner": {"kind": "qlora"}}, "another base than the nf4 one"),
        ({"tuner": {"kind": "dora"}}, "loads no DoRA adapters"),
        ({"tuner": {"kind": "lora", "new_tokens": ["<a>"]}}, "no rows for new_tokens"),
        ({"tuner": {"kind": "lora", "modules_to_save": ["lm_head"]}}, "no modules_to_save"),
        ({"tuner": {"kind": "lora", "rank_pattern": {"q_proj": 2}}}, "without rank_pattern"),
    ],
)
def test_what_vllm_cannot_be_given_is_refused(
    changes: dict[str, Any], reason: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        job(tiny, tmp_path, "out", objective={"rollout": {"kind": "vllm"}}, **changes)


def test_ranks_get_as_many_rows_of_answers_each() -> None:
    lengths = np.array([30, 20, 20, 10, 10, 10])
    assert len(shared_bins(lengths, 100, 1)) == 1
    for ranks in (2, 4):
        bins = shared_bins(lengths, 100, ranks)
        assert len(bins) == ranks
        assert sorted(n for part in bins for n in part) == list(range(6))
        assert max(lengths[part].sum() for part in bins) <= 60 / ranks * 2
    assert len(shared_bins(lengths[:1], 100, 2)) == 1
    tight = np.array([3, 3, 2, 2, 2, 6, 6])  # four rows would do, were it not for their order
    assert max(tight[part].sum() for part in shared_bins(tight, 6, 2)) <= 6


def test_a_teacher_s_own_answers_are_learned(tiny: Path, tmp_path: Path) -> None:
    teacher = make_tiny_checkpoint(tmp_path / "teacher", hidden=32, seed=1)
    data = tmp_path / "dialogues.jsonl"
    turns = [{"role": "user", "content": "lamp"}, {"role": "assistant", "content": "red"}]
    data.write_text("\n".join(json.dumps({"messages": turns}) for _ in range(8)))
    told = []
    for lmbda, seq_kd in ((0.0, True), (1.0, False)):
        objective = {
            "kind": "gkd", "teacher": str(teacher), "lmbda": lmbda, "seq_kd": seq_kd,
            "rewards": None,
        }  # fmt: skip
        wanted = job(
            tiny, tmp_path, f"out-{lmbda}", max_steps=2,
            data={"dataset": [str(data)]},
        ).model_dump(mode="json", exclude={"objective"})  # fmt: skip
        del objective["rewards"]
        wanted["objective"] = objective | {"rollout": {"kind": "policy", "max_new_tokens": 6}}
        run(jobfile.parse(TrainJob, wanted), events.ignore)
        told.append(metrics(tmp_path / f"out-{lmbda}")[0]["own_share"])
    assert told == [0, 1]


def test_the_frozen_start_of_a_stretched_model_is_stretched_too(tiny: Path, tmp_path: Path) -> None:
    scaled = {"rope_scaling": "linear", "rope_factor": 4, "tuner": {"kind": "full"}}
    run(job(tiny, tmp_path, "out", objective={"beta": 0.1}, max_steps=1, **scaled), events.ignore)
    assert metrics(tmp_path / "out")[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_a_reference_that_no_adapter_gives_is_refused(tiny: Path, tmp_path: Path) -> None:
    continued = {"kind": "lora", "adapter": str(tmp_path)}
    with pytest.raises(UserError, match="gives the model before it"):
        job(tiny, tmp_path, "out", objective={"beta": 0.1}, tuner=continued)
