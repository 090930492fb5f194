"""Evaluations of real tiny checkpoints, and requests that are wrong."""

import json
import math
from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint

from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Event, ignore
from dialoop.core.jobfile import parse
from dialoop.evaluate.run import run
from dialoop.evaluate.spec import EvaluateJob

DIALOGUES = [
    [("user", "Where is my order?"), ("assistant", "It left this morning.")],
    [
        ("system", "Be kind."),
        ("user", "How do I return a lamp?"),
        ("assistant", "Send it back."),
        ("user", "Until when?"),
        ("assistant", "Within thirty days."),
    ],
    [("user", "x"), ("assistant", "long " * 400)],
]
SUITE = """
- {id: any, question: "Where is my order?", must_not_contain: [qqqq]}
- {id: never, question: hello, must_contain: [qqqqqqqqqq]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    make_tiny_checkpoint(folder / "one", seed=1)
    make_tiny_checkpoint(folder / "two", "internlm3", seed=2)
    lines = [
        json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]})
        for turns in DIALOGUES
    ]
    (folder / "held_out.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "suite.yaml").write_text(SUITE)
    return folder


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


def job(place: Path, **fields: object) -> EvaluateJob:
    given = {
        "model": str(place / "one"),
        "device": "cpu",
        "dtype": "fp32",
        "max_length": 256,
        "generation": {"max_new_tokens": 8},
    }
    return parse(EvaluateJob, given | fields)


def test_loss_equals_transformers_own_document_by_document(place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from dialoop.chat.message import message
    from dialoop.chat.template import Template

    result = run(job(place, dataset=[str(place / "held_out.jsonl")], tasks=["loss"]), ignore)
    model = AutoModelForCausalLM.from_pretrained(place / "one", dtype=torch.float32)
    template = Template.from_folder(place / "one")
    nats = targets = 0.0
    for turns in DIALOGUES[:2]:  # the third is longer than max_length
        for row in template.train_rows([message(r, c) for r, c in turns]):  # pyright: ignore[reportArgumentType]
            ids = torch.tensor(row.ids[None].astype("int64"))
            with torch.no_grad():
                logp = model(ids).logits[0].log_softmax(-1)
            for at in row.weights.nonzero()[0]:
                nats -= float(logp[at - 1, ids[0, at]])
                targets += 1
    assert result.loss == pytest.approx(nats / targets, rel=1e-5)  # float32 sums in another order
    assert result.perplexity == pytest.approx(math.exp(nats / targets), rel=1e-5)
    assert result.model.score("target tokens") == targets
    assert result.model.score("records left out") == 1


def test_row_size_does_not_change_the_loss(place: Path) -> None:
    data = [str(place / "held_out.jsonl")]
    losses = [
        run(job(place, dataset=data, tasks=[{"kind": "loss", "row_tokens": n}]), ignore).loss
        for n in (16, 2048)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_two_checkpoints_side_by_side_with_reports(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    events: list[Event] = []
    asked = job(
        place,
        compare=str(place / "two"),
        dataset=[str(place / "held_out.jsonl")],
        suite=[str(place / "suite.yaml")],
        output=str(out),
    )
    result = run(asked, events.append)
    assert result.loss != result.compare_loss
    assert (result.checks_passed, result.checks_total, result.compare_checks_passed) == (1, 2, 1)
    assert {m.task for m in result.model.measured} == {"answers", "loss", "suite"}
    assert json.loads((out / "report.json").read_text())["loss"] == result.loss
    assert "Within thirty days." in (out / "report.md").read_text()
    assert "Within thirty days." in (out / "report.html").read_text()
    assert Artifact("report", str(out / "report.html")) in events
    assert parse(EvaluateJob, {"model": "m"}).output is None


def test_earlier_reports_stand_for_checkpoints(place: Path, tmp_path: Path) -> None:
    asked = {"suite": [str(place / "suite.yaml")], "dataset": [str(place / "held_out.jsonl")]}
    old, new = tmp_path / "old", tmp_path / "new"
    before = run(job(place, **asked, output=str(old)), ignore)
    run(job(place, **asked, model=str(place / "two"), output=str(new)), ignore)
    again = run(parse(EvaluateJob, {"model": str(new), "compare": str(old)}), ignore)
    assert again.compare_loss == before.loss
    fresh = run(
        job(place, **asked, model=str(place / "two"), compare=str(old), history=[old, new]), ignore
    )
    assert fresh.loss == again.loss
    assert fresh.comparisons == again.comparisons
    assert {c.score for c in fresh.comparisons} == {"loss", "perplexity", "checks passed"}
    assert [past.name for past in fresh.history] == [str(old), str(new)]
    (old / "report.json").write_text("{}")
    with pytest.raises(UserError, match="is no report of this version"):
        run(job(place, **asked, compare=str(old)), ignore)
    with pytest.raises(UserError, match=r"holds no report\.json"):
        run(job(place, **asked, history=[place]), ignore)


def test_batched_answers_equal_single_ones(place: Path) -> None:
    suite = [str(place / "suite.yaml")]
    several, single = (
        run(job(place, suite=suite, generation={"max_new_tokens": 8, "batch_size": n}), ignore)
        for n in (8, 1)
    )
    assert several.model.measured[0].cases == single.model.measured[0].cases


def test_sampling_repeats_under_its_seed(place: Path) -> None:
    generation = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    first, second = (
        run(job(place, suite=[str(place / "suite.yaml")], generation=generation), ignore)
        for _ in range(2)
    )
    assert first.model == second.model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing to measure"),
        ({"tasks": ["loss"]}, "task `loss` needs `dataset`"),
        ({"tasks": ["suite"], "dataset": ["held_out.jsonl"]}, "task `suite` needs `suite`"),
        ({"suite": ["suite.yaml"], "generation": {"max_new_tokens": 600}}, "the model takes 512"),
        ({"tasks": ["suite", "suite"], "suite": ["suite.yaml"]}, "two are called `suite`"),
        ({"compare_endpoint": "http://127.0.0.1:1/v1"}, "an address without a model"),
        ({"suite": ["suite.yaml"], "model": "no-such-model"}, "no-such-model"),
        ({"dataset": ["absent.jsonl"]}, r"absent\.jsonl"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    place: Path, fields: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=message):
        run(job(place, **fields), ignore)


def test_unknown_fields_and_tasks_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match="unknown `los`"):
        job(place, tasks=["los"])
