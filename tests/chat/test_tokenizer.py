"""Tokenizers of real layouts: ids, streamed text, end tokens, limits, errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chat import samples

from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.errors import UserError

TEXTS = (
    "The parcel arrives on Monday.",
    "您的订单明天送达，谢谢",  # noqa: RUF001
    "  two  spaces\n\n\nand\ttabs",
    "emoji \U0001f389\U0001f469\u200d\U0001f52c end",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "",
)


def _sentencepiece_folder(folder: Path, shared_data: Path) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(shared_data / "tokenizers" / "internlm_V7_sft.model", folder / "tokenizer.model")
    added = {"103168": "<|im_start|>", "103169": "<|im_end|>"}
    config = {
        "added_tokens_decoder": {n: {"content": t, "special": True} for n, t in added.items()},
        "model_max_length": 1e30,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_those_of_transformers(tmp_path: Path, text: str) -> None:
    from transformers import AutoTokenizer

    folder = samples.tokenizer_folder(tmp_path, None)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids, skip_special=False) == text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_models_need_no_transformers(
    tmp_path: Path, shared_data: Path, text: str
) -> None:
    tokenizer = load_tokenizer(_sentencepiece_folder(tmp_path, shared_data))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False).removeprefix(" ") == text.removeprefix(" ")
    assert (103168 in ids) == ("<|im_start|>" in text)
    assert tokenizer.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    assert tokenizer.max_length is None
    assert tokenizer.add_bos
    assert tokenizer.vocab_size == 103170


def test_text_that_goes_on_gets_no_space_before_it(tmp_path: Path, shared_data: Path) -> None:
    tokenizer = load_tokenizer(_sentencepiece_folder(tmp_path, shared_data))
    alone, after = tokenizer.encode("Hello"), tokenizer.encode_after("Hello")
    ids = tokenizer.encode("assistant:")
    assert tokenizer.decode(ids + after) == tokenizer.decode(ids) + "Hello"
    assert tokenizer.encode_after("<|im_end|>\n")[0] == 103169
    assert after != [] != alone


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_streamed_text_never_holds_half_a_character(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, text: str
) -> None:
    if kind == "bpe":
        tokenizer = load_tokenizer(samples.tokenizer_folder(tmp_path, None))
    else:
        shared_data = request.getfixturevalue("shared_data")
        tokenizer = load_tokenizer(_sentencepiece_folder(tmp_path, shared_data))
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in ids]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert stream.finish() == ""
    if "\U0001f389" in text:
        assert "" in pieces, "the text must hold a character of several tokens to test anything"


def test_an_unfinished_character_at_the_end_is_left_out(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(samples.tokenizer_folder(tmp_path, None))
    stream = tokenizer.stream()
    assert stream.push(*tokenizer.encode("a\U0001f389")[:-1]) == ""
    assert stream.finish() == "a"
    assert stream.finish() == ""


def test_end_tokens_come_from_every_file_that_names_one(tmp_path: Path) -> None:
    folder = samples.tokenizer_folder(tmp_path, None)
    own = load_tokenizer(folder)
    assert own.eos_ids == (own.token_id("</s>"),)
    end = own.token_id("<|im_end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 1]}))
    config = {"eos_token_id": end, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_ids == (own.token_id("</s>"), end)
    assert tokenizer.special_ids >= {end}
    assert (own.max_length, tokenizer.max_length) == (4096, 512)
    assert own.digest != tokenizer.digest
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", None)
    assert not tokenizer.add_bos


def test_tokens_that_only_the_config_lists_are_recognised(tmp_path: Path) -> None:
    folder = samples.tokenizer_folder(tmp_path, None)
    size = load_tokenizer(folder).vocab_size
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(size): {"content": "<|extra|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a<|extra|>")[-1] == size
    assert tokenizer.vocab_size == size + 1


def test_other_vocabularies_go_through_transformers(tmp_path: Path) -> None:
    folder = samples.tokenizer_folder(tmp_path / "fast", None)
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (old / "tokenizer_config.json").write_text(json.dumps(config))
    (old / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    ours, fast = load_tokenizer(old), load_tokenizer(folder)
    text = "The parcel arrives </s>"
    assert ours.encode(text) == fast.encode(text)
    assert ours.decode(ours.encode(text), skip_special=False) == text
    assert ours.eos_token == "</s>"


def test_a_json_tokenizer_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    folder = samples.tokenizer_folder(tmp_path, samples.CHATML)
    code = (
        "import sys; from pathlib import Path; from dialoop.chat.template import Template; "
        f"Template.from_folder(Path({str(folder)!r})).stop_ids; "
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{", "is not a tokenizer file"),
        ("tokenizer.model", "nonsense", "is not a SentencePiece model"),
        ("tokenizer_config.json", "[", "is not JSON"),
        ("tokenizer_config.json", "[]", "holds no JSON object"),
        ("README.md", "", "no tokenizer can be read from"),
    ],
)
def test_damaged_folders_are_the_users_error(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.hint


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        load_tokenizer(tmp_path / "absent")
