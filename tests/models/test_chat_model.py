"""ChatModel answers as transformers generates, whole and streamed."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dialoop import ChatModel
from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.models.chat_model import _cut

QUESTION = [{"role": "user", "content": "Where is my order? 我的订单"}]


@pytest.fixture(scope="module")
def model(internlm3: Path) -> ChatModel:
    return ChatModel.from_pretrained(internlm3, device="cpu", dtype="fp32")


def greedy(model: ChatModel) -> str:
    inputs: Any = model.tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    answer = ids[0, inputs["input_ids"].shape[1] :]
    return str(model.tokenizer.decode(answer, skip_special_tokens=True))


def test_greedy_chat_is_transformers_own_generation(model: ChatModel) -> None:
    answer = model.chat(QUESTION, max_new_tokens=24, temperature=0)
    # Of a character that the limit cuts in two, chat gives nothing.
    assert answer == greedy(model).rstrip("\N{REPLACEMENT CHARACTER}")
    assert answer


def test_a_stream_joins_to_the_whole_answer(model: ChatModel) -> None:
    pieces = list(model.chat(QUESTION, max_new_tokens=24, temperature=0, stream=True))
    assert len(pieces) > 1
    assert "".join(pieces) == model.chat(QUESTION, max_new_tokens=24, temperature=0)


def test_text_messages_and_objects_ask_the_same(model: ChatModel) -> None:
    text = QUESTION[0]["content"]
    answers = {
        model.chat(form, max_new_tokens=8, temperature=0)
        for form in (text, QUESTION, [message("user", text)])
    }
    assert len(answers) == 1


def test_a_seed_repeats_the_draw_and_leaves_the_callers_generator_alone(model: ChatModel) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = model.chat("hi", max_new_tokens=16, temperature=1.0, top_p=1.0, seed=5)
    two = model.chat("hi", max_new_tokens=16, temperature=1.0, top_p=1.0, seed=5)
    other = model.chat("hi", max_new_tokens=16, temperature=1.0, top_p=1.0, seed=6)
    assert one == two != other
    assert torch.rand(1) == expected


def test_leaving_a_stream_ends_the_generation(model: ChatModel) -> None:
    before = set(threading.enumerate())
    stream = model.chat("hi", max_new_tokens=400, temperature=0, stream=True)
    next(iter(stream))
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert set(threading.enumerate()) <= before  # another test's may have ended meanwhile


@pytest.mark.parametrize("pieces", [["abcSTOPdef"], ["ab", "cS", "TO", "Pdef"], list("abcSTOPdef")])
def test_stop_texts_cut_wherever_pieces_break(pieces: list[str]) -> None:
    assert "".join(_cut(iter(pieces), ("STOP",))) == "abc"


def test_a_beginning_of_a_stop_text_is_passed_on_at_the_end() -> None:
    assert "".join(_cut(iter(["ab", "cST", "Ox"]), ("STOP",))) == "abcSTOx"
    assert "".join(_cut(iter(["ab", "cST"]), ("STOP",))) == "abcST"


def test_stop_ends_the_answer(model: ChatModel) -> None:
    whole = model.chat("hi", max_new_tokens=24, temperature=0)
    stop = whole[3:5]
    cut = model.chat("hi", max_new_tokens=24, temperature=0, stop=[stop])
    assert cut == whole[: whole.index(stop)]


def test_an_adapter_folder_talks_with_its_base_tokenizer(adapter: Path) -> None:
    model = ChatModel.from_pretrained(adapter, device="cpu", dtype="fp32")
    assert model.chat("hi", max_new_tokens=8, temperature=0)
    assert model.tokenizer("text", return_tensors="pt")["input_ids"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is less than 1"),
        ({"temperature": -1.0}, "temperature: -1.0 is negative"),
        ({"top_p": 0.0}, "top_p: 0.0 is not above 0"),
    ],
)
def test_values_out_of_range(model: ChatModel, options: dict[str, float], text: str) -> None:
    with pytest.raises(UserError, match=text):
        model.chat("hi", **options)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_dialogue_longer_than_the_context(model: ChatModel) -> None:
    with pytest.raises(UserError, match=r"the dialogue has \d+ tokens and the model reads 512"):
        model.chat("order " * 600)


def test_an_empty_dialogue(model: ChatModel) -> None:
    with pytest.raises(UserError, match="the dialogue is empty"):
        model.chat([])


def test_an_error_while_generating_reaches_the_caller(model: ChatModel) -> None:
    options = {"generation_config": None, "max_new_tokens": "many"}
    with pytest.raises((TypeError, ValueError)):
        list(model._stream([1, 2, 3], options, None))


def test_importing_dialoop_loads_no_torch() -> None:
    code = "import sys, dialoop; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
