"""rm, classify and rerank: formulas, peers, and saved heads that transformers and PEFT load."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tiny import make_tiny_checkpoint
from tests.train.objectives.scored import CPU, assert_same, row, step, tiny_model

from dialoop.chat.template import Template
from dialoop.core import events, jobfile
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.data.sample import from_json
from dialoop.data.units import Unit
from dialoop.models import merge
from dialoop.models.chat_model import ChatModel
from dialoop.models.load import load_model
from dialoop.models.spec import MergeJob
from dialoop.train.batch import Step, collate
from dialoop.train.objectives.classify import Classify
from dialoop.train.objectives.rerank import Rerank
from dialoop.train.objectives.rm import Rm
from dialoop.train.run import run
from dialoop.train.spec import TrainJob
from dialoop.train.view import View, use_packed_attention


def pairs(count: int) -> list[Unit]:
    random = np.random.default_rng(0)
    lengths = random.integers(4, 12, (count, 2))
    return [
        Unit(tuple(row(random, int(n)) for n in two), float(random.random())) for two in lengths
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_model(tmp_path_factory.mktemp("rm") / "tiny", "score", 1)


def test_the_reward_loss_and_its_gradients_are_those_of_trl(model: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    module = pytest.importorskip("trl.trainer.reward_trainer")
    given = pairs(5)
    loss, _, grads = step(Rm(center_coefficient=0.01), model, [given[:2], given[2:]])
    collator = module.DataCollatorForPreference(pad_token_id=0)
    inputs = collator([
        {"chosen_ids": u.rows[0].ids, "rejected_ids": u.rows[1].ids, "margin": u.value}
        for u in given
    ])  # fmt: skip
    peer = make_peer(tmp_path, model)
    trainer = object.__new__(trl.RewardTrainer)
    expected = reward_loss(trainer, peer, inputs)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    assert_same(grads, {n: p.grad for n, p in peer.named_parameters() if p.grad is not None})


def make_peer(folder: Path, model: Any) -> Any:
    """The same weights under transformers' own attention."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model.config)
    config.pad_token_id = 0
    state = {name: value.clone() for name, value in model.state_dict().items()}
    peer = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    peer.load_state_dict(state)
    return peer


def reward_loss(trainer: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """TRL's own computation, without the rest of a trainer."""
    from collections import defaultdict
    from types import SimpleNamespace

    trainer.args = SimpleNamespace(center_rewards_coefficient=0.01)
    trainer.model = model.train()
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    trainer._metrics = {"train": defaultdict(list)}
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer.accelerator = same
    return trainer.compute_loss(model, inputs)


def test_the_reward_loss_by_its_formula(model: Any) -> None:
    given = pairs(4)
    loss, metrics, _ = step(Rm(center_coefficient=0.1), model, [given])
    with torch.no_grad():
        scores = View(model).scores(collate(given, CPU, Step(1.0, 4))).view(4, 2)
    margin = torch.tensor([unit.value for unit in given])
    expected = -F.logsigmoid(scores[:, 0] - scores[:, 1] - margin) + 0.1 * scores.sum(1) ** 2
    assert loss == pytest.approx(float(expected.mean()), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((scores[:, 0] > scores[:, 1]).float().mean()))


def lists(count: int) -> list[Unit]:
    random = np.random.default_rng(0)
    return [
        Unit(tuple(row(random, int(random.integers(4, 12)), 3) for _ in range(2 + n % 3)))
        for n in range(count)
    ]


def test_a_list_is_the_cross_entropy_of_its_positive(model: Any) -> None:
    given = lists(5)
    loss, _, grads = step(Rerank(), model, [given])
    with torch.no_grad():
        scores = View(model).scores(collate(given, CPU, Step(1.0, 5)))[:, 0]
    parts = scores.split([len(unit.rows) for unit in given])
    expected = sum(float(-part.log_softmax(0)[0]) for part in parts) / 5
    assert loss == pytest.approx(expected, rel=1e-5)
    split = step(Rerank(), model, [given[:2], given[2:]])
    assert split[0] == pytest.approx(loss, rel=1e-5)
    assert_same(split[2], grads)


def test_yes_against_no_is_read_behind_the_prompt(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny", "tokens")
    template = Template.from_folder(tmp_path / "tiny")
    retrieval = {
        "query": [{"role": "user", "content": "where is my lamp"}],
        "positives": [[{"role": "user", "content": "it left today"}]],
        "negatives": [[{"role": "user", "content": "a chair"}]],
    }
    objective = Rerank(scoring="generative", loss_type="pointwise", opening="> ")
    given = objective.encode(from_json(retrieval), template)
    loss, _, _ = step(objective, model, [given])
    gaps = []
    for unit in given:
        *prompt, yes, no = unit.rows[0].ids.tolist()
        assert template.tokenizer.decode(prompt, skip_special=False).endswith("assistant\n> ")
        bounds = (0, len(prompt))
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([prompt]), bounds=bounds, max_seqlen=len(prompt),
                cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
            ).logits[0, -1]  # fmt: skip
        gaps.append(logits[yes] - logits[no])
    expected = F.binary_cross_entropy_with_logits(torch.stack(gaps), torch.tensor([1.0, 0.0]))
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_labels_come_from_the_data(tmp_path: Path) -> None:
    samples = [from_json({"text": f"t{n}", "_label": n}) for n in (10, 2, 2)]
    settled = Classify().settled(samples, tmp_path)
    assert settled.labels == ["2", "10"]
    assert Classify(labels=["a"]).settled(samples, tmp_path).labels == ["a"]
    with pytest.raises(UserError, match="the column `mood` holds no labels"):
        Classify(column="mood").settled(samples, tmp_path)


DATA: dict[str, list[dict[str, Any]]] = {
    "rm": [{"prompt": f"lamp {n}", "chosen": "it is red", "rejected": "no"} for n in range(8)],
    "classify": [{"text": f"lamp {n}", "label": "even" if n % 2 else "odd"} for n in range(8)],
    "rerank": [
        {"query": f"lamp {n}", "positive": f"lamp {n} is red", "negative": ["a chair", "no"]}
        for n in range(8)
    ],
}
TEXTS = {"rm": ("lamp 3", None), "classify": ("lamp 3", None), "rerank": ("lamp 3", "a red lamp")}


def score_job(folder: Path, objective: str, tuner: str) -> TrainJob:
    make_tiny_checkpoint(folder / "tiny", "internlm3")
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, DATA[objective])), encoding="utf-8")
    wanted: dict[str, Any] = {
        "model": str(folder / "tiny"), "data": {"dataset": [str(data)]},
        "output": str(folder / "out"), "objective": {"kind": objective}, "tuner": {"kind": tuner},
        "device": "cpu", "dtype": "fp32", "max_length": 64, "max_steps": 3, "workers": 1,
        "optim": {"lr": 0.01},
    }  # fmt: skip
    return jobfile.parse(TrainJob, wanted)


def our_scores(folder: Path, texts: tuple[str, str | None]) -> torch.Tensor:
    model = load_model(folder, device=find("cpu"), dtype="fp32", head="score")
    use_packed_attention(model)
    unit = Unit((Template.from_folder(folder).framed_row(*texts),))
    with torch.no_grad():
        return View(model).scores(collate([unit], CPU, Step(1.0, 1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("objective", sorted(DATA))
def test_a_saved_head_is_loaded_by_others_and_merged(
    tmp_path: Path, objective: str, tuner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    run(score_job(tmp_path, objective, tuner), events.ignore)
    folder, texts = tmp_path / "out", TEXTS[objective]
    ours = our_scores(folder, texts)
    assert ours.shape == (1, 2 if objective == "classify" else 1)
    if tuner == "full":
        theirs: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        peft = pytest.importorskip("peft")
        assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
        base = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "tiny", num_labels=ours.shape[1]
        )
        base.config.pad_token_id = 0
        theirs = peft.PeftModel.from_pretrained(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer([texts[0]], texts[1:] if texts[1] else None, return_tensors="pt")
    with torch.no_grad():
        scores = theirs(given.input_ids, attention_mask=given.attention_mask).logits
    torch.testing.assert_close(ours, scores, rtol=0, atol=1e-5)
    if tuner == "lora":
        merge.run(MergeJob(model=str(folder), output=tmp_path / "merged"), events.ignore)
        torch.testing.assert_close(our_scores(tmp_path / "merged", texts), ours, rtol=0, atol=1e-4)
    if objective == "classify" and tuner == "full":
        assert theirs.config.id2label == {0: "even", 1: "odd"}
    with pytest.raises(UserError, match="ends in scores, not in a distribution over tokens"):
        ChatModel.from_pretrained(folder, device="cpu")


def test_the_padding_token_ends_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    job = score_job(tmp_path, "rm", "full")
    path = tmp_path / "tiny/tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"pad_token": config["eos_token"]}))
    run(job, events.ignore)
    saved = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert saved["pad_token"] == "<|im_start|>"
    template = Template.from_folder(tmp_path / "out")
    pad = json.loads((tmp_path / "out/config.json").read_text())["pad_token_id"]
    assert pad == template.tokenizer.token_id("<|im_start|>")
