"""Embedding losses: against plain formulas and sentence-transformers, whole steps, saved models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tiny import make_tiny_checkpoint
from tests.train.objectives.scored import assert_same, row, step, tiny_model
from typing_extensions import override

from dialoop.core import events, jobfile
from dialoop.core.errors import UserError
from dialoop.data.units import Unit
from dialoop.models import merge
from dialoop.models.chat_model import ChatModel
from dialoop.models.spec import MergeJob
from dialoop.train.batch import Batch, Step, collate
from dialoop.train.objectives import Outcome
from dialoop.train.objectives.embed import Embed
from dialoop.train.run import run
from dialoop.train.spec import TrainJob
from dialoop.train.view import View


def units(count: int, negatives: int, *, values: bool = False, seed: int = 0) -> list[Unit]:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 12, (count, 2 + negatives))
    return [
        Unit(tuple(row(random, int(n)) for n in line), float(random.random()) if values else 0.0)
        for line in lengths
    ]


def embedded(model: Any, given: list[Unit], pooling: str) -> list[torch.Tensor]:
    """(U, D) for each place in the units, every text computed alone and by eager attention."""
    out: list[list[torch.Tensor]] = []
    for place in range(len(given[0].rows)):
        vectors = []
        for unit in given:
            ids = torch.from_numpy(unit.rows[place].ids.astype(np.int64))[None]
            bounds = (0, ids.shape[1])
            hidden = model(
                input_ids=ids, bounds=bounds, cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
                max_seqlen=bounds[1],
            ).last_hidden_state[0]  # fmt: skip
            vectors.append({"last": hidden[-1], "cls": hidden[0], "mean": hidden.mean(0)}[pooling])
        out.append(vectors)
    return [torch.stack(vectors) for vectors in out]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_model(tmp_path_factory.mktemp("embed") / "tiny", "none")


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_infonce_is_the_cross_entropy_of_similarities(model: Any, pooling: str) -> None:
    given = units(4, 2)
    objective = Embed.model_validate({"pooling": pooling})
    loss, _, grads = step(objective, model, [given])
    query, positive, *negatives = (F.normalize(x) for x in embedded(model, given, pooling))
    scores = query @ torch.cat([positive, *negatives]).T / 0.05
    expected = F.cross_entropy(scores, torch.arange(4))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same(grads, gradients(model, expected))


@pytest.mark.parametrize("loss_type", ["infonce", "cosent", "cosine"])
@pytest.mark.parametrize("dims", [[], [64, 16]])
def test_eight_micro_batches_make_the_step_of_one(
    model: Any, loss_type: str, dims: list[int]
) -> None:
    given = units(8, 0 if loss_type != "infonce" else 1, values=True)
    wanted = {"loss_type": loss_type, "pooling": "mean", "matryoshka_dims": dims}
    objective = Embed.model_validate(wanted)
    whole = step(objective, model, [given])
    split = step(objective, model, [[unit] for unit in given])
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    assert split[1] == pytest.approx(whole[1], rel=1e-5)
    assert_same(split[2], whole[2])


class Counted(Embed, frozen=True):
    """Says which of its parts the loop asked for."""

    asked: list[str] = []  # noqa: RUF012

    @override
    def survey(self, view: View, batch: Batch) -> torch.Tensor:
        self.asked.append("survey")
        return super().survey(view, batch)

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        self.asked.append("loss")
        return super().loss(view, batch)


def test_a_step_of_one_micro_batch_is_not_surveyed(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    lines = [{"query": f"lamp {n}", "positive": f"it costs {n}"} for n in range(8)]
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    curves: list[list[float]] = []
    for accumulate, max_length in ((1, 512), (8, 32)):
        wanted = jobfile.parse(TrainJob, {
            "model": str(make_tiny_checkpoint(tmp_path / f"tiny{accumulate}")),
            "data": {"dataset": [str(data)]}, "output": str(tmp_path / f"out{accumulate}"),
            "objective": {"kind": "embed"}, "tuner": {"kind": "full"}, "device": "cpu",
            "dtype": "fp32", "max_length": max_length, "accumulate": accumulate, "max_steps": 3,
            "workers": 1, "optim": {"lr": 1e-3}, "seed": 1,
        })  # fmt: skip
        objective = Counted(asked=[])
        told: list[events.Event] = []
        run(wanted.model_copy(update={"objective": objective}), told.append)
        assert objective.asked.count("survey") == (
            0 if accumulate == 1 else len(objective.asked) / 2
        )
        metrics = [e for e in told if isinstance(e, events.Metrics)]
        curves.append([e.values["loss"] for e in metrics])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_dropout_falls_on_the_same_places_in_survey_and_loss(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny", "none")
    for layer in model.layers:
        layer.self_attn.attention_dropout = 0.3
    given = units(4, 1)
    objective = Embed.model_validate({"pooling": "last"})
    torch.manual_seed(1)
    loss, _, _ = step(objective, model, [given[:2], given[2:]])
    torch.manual_seed(1)
    with torch.no_grad():
        texts = [
            View(model).pooled(collate(part, torch.device("cpu"), Step(1.0, 4)), "last")
            for part in (given[:2], given[2:])
        ]
    vectors = F.normalize(torch.cat(texts)).view(4, 3, -1)
    scores = vectors[:, 0] @ vectors[:, 1:].reshape(8, -1).T / 0.05
    assert loss == pytest.approx(float(F.cross_entropy(scores, torch.arange(0, 8, 2))), rel=1e-5)


def test_copies_and_near_negatives_are_left_out(model: Any) -> None:
    given = units(3, 1)
    positive = given[1].rows[1]
    copied = [Unit((given[0].rows[0], positive, given[0].rows[2])), *given[1:]]
    query, first, second = (F.normalize(x) for x in embedded(model, copied, "last"))
    similarity = query @ torch.cat([first, second]).T  # (3, 6)
    for margin in (None, 0.0):
        wanted = {"pooling": "last", "false_negative_margin": margin}
        loss, _, _ = step(Embed.model_validate(wanted), model, [copied])
        left_out = torch.zeros(3, 6, dtype=torch.bool)
        left_out[0, 1] = left_out[1, 0] = True
        if margin is not None:
            left_out |= similarity > similarity.diagonal()[:, None]
        scores = similarity.masked_fill(left_out, -torch.inf) / 0.05
        expected = F.cross_entropy(scores, torch.arange(3))
        assert loss == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)


def test_only_own_negatives_count_without_in_batch(model: Any) -> None:
    given = units(3, 2)
    objective = Embed.model_validate({"pooling": "last", "in_batch": False})
    loss, _, _ = step(objective, model, [given])
    query, *passages = (F.normalize(x) for x in embedded(model, given, "last"))
    scores = torch.stack([(query * p).sum(1) for p in passages], 1) / 0.05
    assert loss == pytest.approx(
        float(F.cross_entropy(scores, torch.zeros(3).long()).detach()), rel=1e-5
    )


class Vectors(torch.nn.Module):
    """What sentence-transformers' losses call a model: it hands out vectors computed before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return dict(features)

    def get_embedding_dimension(self) -> int:
        return self.width

    get_sentence_embedding_dimension = get_embedding_dimension


@pytest.mark.filterwarnings("ignore")  # of what their version will rename
@pytest.mark.parametrize("name", ["mnrl", "cosent", "cosine", "matryoshka"])
def test_losses_and_gradients_are_those_of_sentence_transformers(model: Any, name: str) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    scored = name in {"cosent", "cosine"}
    given = units(6, 0 if scored else 2, values=True)
    wanted: dict[str, Any] = {"pooling": "mean", "loss_type": name if scored else "infonce"}
    if name == "matryoshka":
        wanted["matryoshka_dims"] = [64, 32, 8]
    vectors = embedded(model, given, "mean")
    features = [{"sentence_embedding": v} for v in vectors]
    holder: Any = Vectors(64)
    peer = {
        "mnrl": lambda: losses.MultipleNegativesRankingLoss(holder),
        "cosent": lambda: losses.CoSENTLoss(holder),
        "cosine": lambda: losses.CosineSimilarityLoss(holder),
        "matryoshka": lambda: losses.MatryoshkaLoss(
            holder, losses.MultipleNegativesRankingLoss(holder), [64, 32, 8]
        ),
    }[name]()
    labels = torch.tensor([unit.value for unit in given])
    expected = peer(features, labels)
    loss, _, grads = step(Embed.model_validate(wanted), model, [given[:4], given[4:]])
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same(grads, gradients(model, expected))


def lines(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"query": f"lamp {n}", "positive": [f"it costs {n} dollars"], "negative": ["a chair"]}
        for n in range(count)
    ]


def embed_job(folder: Path, model: Path, **changes: Any) -> TrainJob:
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, lines())), encoding="utf-8")
    job: dict[str, Any] = {
        "model": str(model), "data": {"dataset": [str(data)]}, "output": str(folder / "out"),
        "objective": {"kind": "embed", "instruction": "Query: "}, "device": "cpu", "dtype": "fp32",
        "max_length": 64, "accumulate": 2, "max_steps": 3, "workers": 1,
    }  # fmt: skip
    return jobfile.parse(TrainJob, job | changes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_sentence_transformers_gives_the_same_vectors(
    tmp_path: Path, tuner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    make_tiny_checkpoint(tmp_path / "tiny")
    run(embed_job(tmp_path, tmp_path / "tiny", tuner={"kind": tuner}), events.ignore)
    texts = ["lamp 3", "it costs 7 dollars", "台灯"]
    model = peer.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    theirs = torch.tensor(model.encode(texts, prompt_name="query"))
    torch.testing.assert_close(ours(tmp_path / "out", texts), theirs, rtol=0, atol=1e-5)


def ours(folder: Path, texts: list[str]) -> torch.Tensor:
    from dialoop.chat.template import Template
    from dialoop.core.device import find
    from dialoop.models.embeddings import pooling_of
    from dialoop.models.load import load_model
    from dialoop.train.view import use_packed_attention

    model = load_model(folder, device=find("cpu"), dtype="fp32", head="none")
    use_packed_attention(model)
    template = Template.from_folder(folder)
    given = [Unit((template.framed_row(f"Query: {text}"),)) for text in texts]
    batch = collate(given, torch.device("cpu"), Step(1.0, 1))
    with torch.no_grad():
        return F.normalize(View(model).pooled(batch, pooling_of(folder)))


def test_a_width_above_the_models_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    make_tiny_checkpoint(tmp_path / "tiny")
    job = embed_job(
        tmp_path, tmp_path / "tiny", objective={"kind": "embed", "matryoshka_dims": [65]}
    )
    with pytest.raises(UserError, match="matryoshka_dims: 65 is above the model's width 64"):
        run(job, events.ignore)


@pytest.mark.filterwarnings("ignore")
def test_a_merged_embedding_adapter_gives_the_same_vectors_and_does_not_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    make_tiny_checkpoint(tmp_path / "tiny", "internlm3")
    run(embed_job(tmp_path, tmp_path / "tiny", optim={"lr": 0.01}), events.ignore)
    merged = tmp_path / "merged"
    merge.run(MergeJob(model=str(tmp_path / "out"), output=merged), events.ignore)
    texts = ["lamp 3", "it costs 7 dollars"]
    torch.testing.assert_close(
        ours(merged, texts), ours(tmp_path / "out", texts), rtol=0, atol=1e-4
    )
    described = json.loads((merged / "config_sentence_transformers.json").read_text())
    assert described["prompts"]["query"] == "Query: "
    for folder in (merged, tmp_path / "out"):
        with pytest.raises(UserError, match="ends in hidden states, not in a distribution"):
            ChatModel.from_pretrained(folder, device="cpu")
