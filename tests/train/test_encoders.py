"""Encoders that read in both directions: packed as alone, trained, refused where text is wanted."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dialoop.chat.template import Template
from dialoop.core import events, jobfile
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.data.units import Unit
from dialoop.models.load import load_model
from dialoop.train.batch import Step, collate
from dialoop.train.run import run
from dialoop.train.spec import TrainJob
from dialoop.train.view import View, use_packed_attention

WORDS = ("the", "a", "red", "blue", "lamp", "is", "costs", "it", "0", "1", "2", "3")
TEXTS = [("red lamp", "the lamp"), ("blue", "a"), ("the blue lamp is red", "red lamp")]


def make_encoder(folder: Path, family: str) -> Path:
    """A tiny random encoder with a word tokenizer that frames texts as its family does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoModel, BertConfig, XLMRobertaConfig

    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = {
        "bert": "<s> $A </s> $B:1 </s>:1",
        "xlm-roberta": "<s> $A </s> </s> $B </s>",
    }[family]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    named |= {"unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    kind: Any = {"bert": BertConfig, "xlm-roberta": XLMRobertaConfig}[family]
    config = kind(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=66, pad_token_id=1, initializer_range=0.3,
        type_vocab_size=2 if family == "bert" else 1,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


FAMILIES = ("bert", "xlm-roberta")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_texts_are_read_as_alone(tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_encoder(tmp_path / "model", family)
    template, tokenizer = Template.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = load_model(folder, device=find("cpu"), dtype="fp32", head="score", num_scores=3)
    config = copy.deepcopy(model.config)
    peer = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    peer.load_state_dict(model.state_dict())
    use_packed_attention(model)
    units = [Unit((template.framed_row(*pair),)) for pair in TEXTS]
    batch = collate(units, torch.device("cpu"), Step(1.0, 3))
    with torch.no_grad():
        ours = View(model).scores(batch)
        alone = [
            peer.eval()(**tokenizer(*pair, return_tensors="pt", return_token_type_ids=True)).logits
            for pair in TEXTS
        ]
    torch.testing.assert_close(ours, torch.cat(alone), rtol=0, atol=1e-5)


def job(folder: Path, model: Path, objective: str, **changes: Any) -> TrainJob:
    data = folder / "data.jsonl"
    lines = [
        {"query": f"lamp {n % 4}", "positive": f"it costs {n % 4}", "negative": ["the a is"],
         "label": n % 2}
        for n in range(8)
    ]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    wanted: dict[str, Any] = {
        "model": str(model), "data": {"dataset": [str(data)]}, "output": str(folder / "out"),
        "objective": {"kind": objective}, "tuner": {"kind": "full"}, "device": "cpu",
        "dtype": "fp32", "max_length": 64, "batch_size": 4, "accumulate": 1, "max_steps": 12,
        "workers": 1, "optim": {"lr": 3e-3}, "seed": 1,
    }  # fmt: skip
    return jobfile.parse(TrainJob, wanted | changes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("objective", ["embed", "rerank"])
def test_an_encoder_learns(
    tmp_path: Path, family: str, tuner: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    folder = make_encoder(tmp_path / "model", family)
    run(job(tmp_path, folder, objective, tuner={"kind": tuner}), events.ignore)
    lines = map(json.loads, (tmp_path / "out/events.jsonl").read_text().splitlines())
    losses = [e["values"]["loss"] for e in lines if e["event"] == "metrics"]
    assert min(losses[-3:]) < losses[0]
    head = "none" if objective == "embed" else "score"
    load_model(tmp_path / "out", device=find("cpu"), dtype="fp32", head=head)


def test_an_encoder_does_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    folder = make_encoder(tmp_path / "model", "bert")
    with pytest.raises(UserError, match="ends in hidden states, not in a distribution"):
        load_model(folder, device=find("cpu"), dtype="fp32")
