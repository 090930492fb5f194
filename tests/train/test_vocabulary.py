"""Words that a tokenizer does not know: told apart from the start, learned, saved, merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_tiny_checkpoint
from tests.train.small import job as small_job
from tests.train.small import write_dialogues
from tests.train.test_encoders import job, make_encoder

from dialoop.chat.template import Template
from dialoop.core import events
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.models.load import load_model
from dialoop.models.lora import tables
from dialoop.models.merge import run as merge
from dialoop.models.spec import MergeJob
from dialoop.train.plan import plan
from dialoop.train.run import run

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = ["ganz", "neu", "."]
TUNERS: list[dict[str, Any]] = [{"kind": "full"}, {"kind": "lora", "rank": 4}]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


def hidden(folder: Path, ids: list[int]) -> torch.Tensor:
    model = load_model(folder, device=find("cpu"), dtype="fp32", head="none")
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner["kind"])
@pytest.mark.parametrize("objective", ["embed", "rerank"])
def test_an_encoder_learns_words_that_it_did_not_know(
    tuner: dict[str, Any], objective: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base = make_encoder(tmp_path / "model", "bert")
    changes = {"tuner": tuner | {"new_words": WORDS}, "optim": {"lr": 0.01}, "max_steps": 40}
    wanted = job(tmp_path, base, objective, **changes)
    lines = [
        {"query": "lamp " + word, "positive": f"it is {word}", "negative": [f"the {other} is"]}
        for word, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines * 3)), encoding="utf-8")
    run(wanted, events.ignore)
    told = map(json.loads, (tmp_path / "out/events.jsonl").read_text().splitlines())
    losses = [e["values"]["loss"] for e in told if e["event"] == "metrics"]
    assert losses[-1] < 0.7 * losses[0]  # without the words all of the texts would look alike
    tokenizer = Template.from_folder(tmp_path / "out").tokenizer
    ids = tokenizer.encode("lamp neu. ganz")
    assert ids == AutoTokenizer.from_pretrained(tmp_path / "out").encode(
        "lamp neu. ganz", add_special_tokens=False
    )
    assert ids[1:] == [17, 18, 16]
    assert tokenizer.decode(ids).split() == ["lamp", "neu", ".", "ganz"]  # plain: never left out
    head = "none" if objective == "embed" else "score"
    model = load_model(tmp_path / "out", device=find("cpu"), dtype="fp32", head=head)
    assert len(model.get_input_embeddings()(torch.arange(19))) == 19


def test_an_embedding_adapter_with_new_words_is_read_by_peft_and_merged(tmp_path: Path) -> None:
    from peft import AutoPeftModelForFeatureExtraction

    base = make_encoder(tmp_path / "model", "bert")
    run(job(tmp_path, base, "embed", tuner=TUNERS[1] | {"new_words": WORDS}), events.ignore)
    ids = [0, 8, 17, 18, 16, 2]
    mine = hidden(tmp_path / "out", ids)
    theirs = AutoPeftModelForFeatureExtraction.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    with torch.no_grad():
        got = theirs.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(got, mine, rtol=0, atol=1e-5)
    merge(MergeJob(model=str(tmp_path / "out"), output=tmp_path / "merged"), events.ignore)
    torch.testing.assert_close(hidden(tmp_path / "merged", ids), mine, rtol=0, atol=1e-5)


def test_rows_of_unknown_words_are_drawn_and_those_of_known_ones_are_means(tmp_path: Path) -> None:
    base = make_encoder(tmp_path / "model", "bert")
    before = load_model(base, device=find("cpu"), dtype="fp32", head="none")
    old = before.get_input_embeddings().get_parameter("weight").detach()
    wanted = job(
        tmp_path, base, "embed", tuner=TUNERS[0] | {"new_words": ["ganz", "neu", "blue a"]}
    )
    tuner = wanted.tuner
    model = load_model(base, device=find("cpu"), dtype="fp32", head="none")
    tuner.prepare(model, 1)
    rows = model.get_input_embeddings().get_parameter("weight").detach()
    assert len(rows) == len(old) + 3
    torch.testing.assert_close(rows[-1], old[[7, 5]].mean(0))
    ganz, neu = rows[-3:-1]
    assert float(torch.cosine_similarity(ganz, neu, dim=0)) < 0.7
    deviations = (rows[-3:-1] - old.mean(0)) / old.std(0)
    assert 0.6 < float(deviations.std()) < 1.4
    again = load_model(base, device=find("cpu"), dtype="fp32", head="none")
    tuner.prepare(again, 1)
    assert torch.equal(again.get_input_embeddings().get_parameter("weight"), rows)


@pytest.mark.parametrize("tied", [False, True])
def test_full_tuning_of_a_decoder_takes_new_tokens(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_tiny_checkpoint(tmp_path / "base", hidden=32, tied=tied)
    data = write_dialogues(tmp_path / "data.jsonl")
    tuner = {"kind": "full", "new_tokens": ["<|price|>"], "new_words": ["dollars"]}
    wanted = small_job(base, data, tmp_path / "out", tuner=tuner)
    more = plan(wanted).trained_parameters - plan(
        small_job(base, data, tmp_path / "out", tuner={"kind": "full"})
    ).trained_parameters  # fmt: skip
    assert more == 2 * 32 * (1 if tied else 2)
    run(wanted, events.ignore)
    tokenizer = AutoTokenizer.from_pretrained(wanted.output)
    ids = tokenizer("9 dollars<|price|>").input_ids
    assert ids[-2:] == [401, 400]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "9 dollars"
    model = AutoModelForCausalLM.from_pretrained(wanted.output, dtype=torch.float32)
    table, head = (end.get_parameter("weight") for end in tables(model))
    assert len(table) == len(head) == 402
    assert torch.equal(table, head) == tied


def test_new_words_are_refused_beside_a_whole_table(tmp_path: Path) -> None:
    base = make_tiny_checkpoint(tmp_path / "base", hidden=32)
    data = write_dialogues(tmp_path / "data.jsonl")
    tuner = {"kind": "lora", "new_words": ["neu"], "modules_to_save": ["embed_tokens"]}
    with pytest.raises(UserError, match=r"tuner\.new_words: embed_tokens is trained whole"):
        small_job(base, data, tmp_path / "out", tuner=tuner)
