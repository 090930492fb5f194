"""Cleaners: each takes out or changes what it is for, and leaves the rest."""

# ruff: noqa: RUF001  Chinese text

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import Convert

from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.data.cleaners.controls import StripControls
from dialoop.data.cleaners.duplicates import Exact, Near
from dialoop.data.cleaners.language import Language
from dialoop.data.cleaners.looping import DropLooping
from dialoop.data.cleaners.pii import Pii, kinds, mask
from dialoop.data.sample import Sample


def qa(question: str, answer: str) -> Sample:
    return Sample((message("user", question), message("assistant", answer)))


def test_control_and_zero_width_characters_go_and_joined_emoji_stay() -> None:
    family = "\U0001f468\u200d\U0001f469"
    verdict = StripControls().look(qa("a\u200bb\x07", f"\ufeff{family}\ttab"))
    assert verdict.outcome == "changed"
    assert [m.text for m in verdict.sample.messages] == ["ab", f"{family}\ttab"]
    assert StripControls().look(qa("a", "b\n")).outcome == "kept"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("电话13812345678。", {"PHONE"}),
        ("+86 138-1234-5678", {"PHONE"}),
        ("010-85007938", {"PHONE"}),
        ("写信到 li.wei@example.com.cn", {"EMAIL"}),
        ("身份证11010519491231002X", {"ID"}),
        ("身份证110105194912310021", set()),
        ("卡号 4111 1111 1111 1111", {"CARD"}),
        ("订单号 2024112500001234567", set()),
        ("数字 123456 和 2024-11-24", set()),
    ],
)
def test_personal_data_is_found_by_form_and_check_digit(text: str, found: set[str]) -> None:
    assert kinds(text) == found
    assert kinds(mask(text)) == set()
    assert (mask(text) != text) == bool(found)


def test_personal_data_is_masked_in_every_turn() -> None:
    verdict = Pii(mask=True).look(qa("我是13812345678", "好的，a@b.cn"))
    assert [m.text for m in verdict.sample.messages] == ["我是[PHONE]", "好的，[EMAIL]"]
    assert Pii(mask=False).look(qa("13812345678", "x")).sample.messages[0].text == "13812345678"


def test_looping_answers_go_and_tables_stay() -> None:
    assert DropLooping().look(qa("q", "好的。" + "我不知道该怎么办。" * 8)).outcome == "filtered"
    assert DropLooping().look(qa("q", "| --- | --- |" + "-" * 200)).outcome == "kept"
    assert DropLooping().look(qa("重复" * 40, "哈哈哈")).outcome == "kept"


def test_language_share() -> None:
    only_zh = Language(["zh"], 0.5)
    assert (
        only_zh.look(qa("请解释机器学习", "机器学习是一门学科 (machine learning)")).outcome
        == "kept"
    )
    assert only_zh.look(qa("Explain", "Machine learning is a field")).outcome == "filtered"
    assert Language(["zh", "en"], 0.5).look(qa("Это", "русский текст")).outcome == "filtered"
    assert only_zh.look(qa("1+1", "2")).outcome == "kept"


def test_near_duplicates_by_share_of_pieces() -> None:
    rng = random.Random(0)
    words = [str(rng.random()) for _ in range(400)]
    text = " ".join(words)
    slightly = " ".join([*words[:200], "another", *words[201:]])
    half = " ".join([*words[:200], *(str(rng.random()) for _ in range(200))])
    near = Near(0.85)
    assert near.look(qa("q", text)).outcome == "kept"
    assert near.look(qa("q", slightly)).outcome == "duplicates"
    assert near.look(qa("q", half)).outcome == "kept"
    exact = Exact()
    assert [exact.look(qa("q", t)).outcome for t in (text, slightly, text)] == [
        "kept", "kept", "duplicates",
    ]  # fmt: skip


def test_every_count_adds_up_and_what_is_dropped_is_written(
    tmp_path: Path, to_canonical: Convert
) -> None:
    rows: list[Any] = [{"query": f"问题{n}", "response": "答案" * 10} for n in range(10)]
    rows += [rows[0], {"query": "q", "response": ""}, {"query": "q", "response": "短"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = to_canonical(path, cleaning={"dedupe": "exact", "min_chars": 5})
    counts = (result.read, result.kept, result.rejected, result.duplicates, result.filtered)
    assert counts == (13, 10, 1, 1, 1)
    assert result.dropped_path is not None
    dropped = [json.loads(x) for x in result.dropped_path.read_text("utf-8").splitlines()]
    assert [(d["line"], d["outcome"]) for d in dropped] == [(11, "duplicates"), (13, "filtered")]
    with pytest.raises(UserError, match="needs a tokenizer"):
        to_canonical(path, cleaning={"max_tokens": 5})


def test_an_answer_that_cleaning_empties_is_filtered(tmp_path: Path, to_canonical: Convert) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"query": "q", "response": "\u200b\u200b"}, {"query": "q", "response": "a\u200b"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = to_canonical(path, cleaning={"strip_controls": True})
    assert (result.kept, result.filtered) == (1, 1)
    assert '"a"' in result.output.read_text(encoding="utf-8")
