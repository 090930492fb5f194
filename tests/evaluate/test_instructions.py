"""IFEval's instructions: one text that keeps each and one that breaks it; the real prompts."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.fakes import Puppet

from dialoop.core.errors import UserError
from dialoop.evaluate.instructions import CHECKS, count_sentences, is_kept, variants
from dialoop.evaluate.language import language_of
from dialoop.evaluate.tasks import Material, Reply
from dialoop.evaluate.tasks.instructions import Instructions

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["sun", "Moon"]}, "The SUN and the moon", "the sun"),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        "tea, Tea",
        "tea",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "a team", "Tea!"),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        "one!",
        "two!!",
    ),
    ("language:response_language", {"language": "de"}, "Das ist nicht gut.", "It is good."),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "One. Two!",
        "Mr. X sleeps.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "two words",
        "three words now",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "well"},
        "a\n\n'Well, b",
        "well\n\nb",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "x\nP.P.S. y", "x\nP.S. y"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nx", "<< >>\nx"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi!"),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, 'So. is that ALL?"', "Is that all? x"),
    ("startend:quotation", {}, '"quoted"', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "ONE word",
        "TWO WELL-KNOWN",
    ),
    ("change_case:english_capital", {}, "THE END IS IN IT.", "The end."),
    ("change_case:english_lowercase", {}, "the end is in it.", "The end."),
    ("punctuation:no_comma", {}, "no", "a, b"),
]


@pytest.mark.parametrize(("name", "kwargs", "keeps", "breaks"), CASES, ids=lambda v: str(v)[:40])
def test_every_instruction(name: str, kwargs: dict[str, Any], keeps: str, breaks: str) -> None:
    assert is_kept(name, {**kwargs, "unused": None}, keeps)
    assert not is_kept(name, kwargs, breaks)
    assert not is_kept(name, kwargs, " ")


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_loose_variants_trim_lines_and_asterisks() -> None:
    assert variants("Sure!\n*a*\nBye") == (
        *("Sure!\n*a*\nBye", "*a*\nBye", "Sure!\n*a*", "*a*"),
        *("Sure!\na\nBye", "a\nBye", "Sure!\na", "a"),
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [("Dr. No met J. Bond. He ran!", 2), ("一。二！三？", 3), ("3.5 is a number", 1), ("...", 0)],  # noqa: RUF001
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("यह एक अच्छी किताब है और मैं इसे पढ़ रहा हूं", "hi"),
        ("हे एक चांगले पुस्तक आहे आणि मी ते वाचत आहे", "mr"),
        ("Это хорошая книга, и я читаю её", "ru"),
        ("Това е добра книга и аз се радвам, че я чета", "bg"),  # noqa: RUF001
        ("این یک کتاب خوب است که از آن", "fa"),
        ("ಇದು ಒಳ್ಳೆಯ ಪುಸ್ತಕ", "kn"),
        ("이것은 좋은 책입니다", "ko"),
        ("これは良い本です", "ja"),
        ("这是一本好书", "zh"),
        ("Tôi có một cuốn sách của bạn và không được", "vi"),
        ("Tämä on hyvä kirja ja se ei ole", "fi"),
        ("the book is good and it was", "en"),
        ("123 !", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("keywords:exist", {}, "unknown instruction `keywords:exist`"),
        ("punctuation:no_comma", {"x": 1}, "instruction `punctuation:no_comma`: .*'x'"),
        ("language:response_language", {"language": "xx"}, "`xx` is not told apart here"),
        (
            "length_constraints:number_words",
            {"num_words": 1, "relation": "about"},
            "unknown relation `about`",
        ),
    ],
)
def test_wrong_instructions(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        is_kept(name, kwargs, "x")


def test_prompts_and_instructions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"key": 1, "prompt": "a", "instruction_id_list": ["punctuation:no_comma",'
        ' "detectable_format:title"], "kwargs": [{}, {}]}\n'
        '{"key": 2, "prompt": "b", "instruction_id_list": ["startend:quotation"], "kwargs": [{}]}\n'
    )
    replies = {"a": "no title", "b": 'Sure:\n"b"'}
    puppet = Puppet(say=lambda prompt: Reply(replies[prompt.messages[-1].text]))
    measured = Instructions(files=[str(path)]).measure(puppet, Material(None, ()))
    values = {s.name: s.value for s in measured.scores}
    assert values["prompts, strict"] == 0
    assert values["prompts, loose"] == 0.5, "without its first line b is quoted"
    assert values["instructions, strict"] == pytest.approx(1 / 3)
    assert values["instructions, loose"] == pytest.approx(2 / 3)
    assert measured.cases[0].problems == ("breaks detectable_format:title",)


def test_the_real_prompts_are_all_understood(shared_data: Path) -> None:
    path = shared_data / "eval" / "ifeval" / "input_data.jsonl"
    measured = Instructions(files=[str(path)]).measure(Puppet(), Material(None, ()))
    assert len(measured.cases) == 271
    repeated = [c for c in measured.cases if "breaks combination:repeat_prompt" in c.problems]
    assert len(repeated) < 20, "an echo repeats most of the prompts that are to be repeated"
