"""A checkpoint in memory: letters, vectors and calls against transformers' own numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import make_tiny_checkpoint
from transformers import AutoModel, AutoModelForCausalLM

from dialoop.chat.message import Tool, message
from dialoop.chat.template import Template
from dialoop.core.errors import UserError
from dialoop.core.events import ignore
from dialoop.core.jobfile import parse
from dialoop.evaluate.spec import EvaluateJob
from dialoop.evaluate.subject import LoadedSubject, open_subject
from dialoop.evaluate.tasks import Prompt

ASKED = [[message("user", text)] for text in ("red or blue?", "A much longer question than that?")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("subject") / "tiny", seed=3)


def subject(folder: Path) -> LoadedSubject:
    asked = {"model": str(folder), "device": "cpu", "dtype": "fp32"}
    generation = {"max_new_tokens": 4}
    return open_subject(folder, parse(EvaluateJob, asked | {"generation": generation}), ignore)


def test_letters_are_as_likely_as_transformers_says(folder: Path) -> None:
    found = subject(folder).choices(ASKED, ["ABCD", "AB"])
    template = Template.from_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for dialogue, letters, logps in zip(ASKED, ("ABCD", "AB"), found, strict=True):
        ids = torch.tensor([template.prompt_ids(dialogue)])
        tokens = [template.tokenizer.encode_after(letter)[0] for letter in letters]
        with torch.no_grad():
            expected = model(ids).logits[0, -1, tokens].log_softmax(0)
        assert logps == pytest.approx(expected.tolist(), abs=1e-5)  # float32, another order


def test_vectors_are_the_pooled_states(folder: Path) -> None:
    found = subject(folder).vectors(["a lamp", "the order of a lamp"], "find: ")
    template = Template.from_folder(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    for text, vector in zip(("a lamp", "the order of a lamp"), found, strict=True):
        row = template.framed_row("find: " + text)
        with torch.no_grad():
            states = model(torch.tensor(row.ids[None].astype(np.int64))).last_hidden_state[0]
        last = states[-1] / states[-1].norm()  # a decoder's vector is that of its last token
        assert vector == pytest.approx(last.numpy(), abs=1e-5)


def test_tools_are_told_and_long_prompts_refused(folder: Path) -> None:
    tool = Tool("f", "does it", {"type": "object", "properties": {}})
    (with_tool,) = subject(folder).replies([Prompt(tuple(ASKED[0]), (tool,))])
    (plain,) = subject(folder).replies([Prompt(tuple(ASKED[0]))])
    assert with_tool.text != plain.text, "the tool stands in the prompt"
    many = Tool("f", "does it " * 200)
    with pytest.raises(UserError, match=r"may take \d+ tokens; the model takes 512"):
        subject(folder).replies([Prompt(tuple(ASKED[0]), (many,))])


def test_choices_and_vectors_in_one_run_use_the_same_weights(folder: Path, tmp_path: Path) -> None:
    from dialoop.evaluate.run import run

    (tmp_path / "c.jsonl").write_text(
        json.dumps({"question": "x", "choices": ["a", "b"], "answer": 0}) + "\n"
    )
    (tmp_path / "q.jsonl").write_text('{"query": "a", "positive": ["b"], "negative": ["c"]}\n')
    tasks = [
        {"kind": "choice", "files": [str(tmp_path / "c.jsonl")]},
        {"kind": "retrieval", "files": [str(tmp_path / "q.jsonl")]},
    ]
    asked = {"model": str(folder), "device": "cpu", "dtype": "fp32", "tasks": tasks}
    result = run(parse(EvaluateJob, asked), ignore)
    assert [part.task for part in result.model.measured] == ["choice", "retrieval"]
