"""The suite file and its checks."""

from pathlib import Path

import pytest

from dialoop.core.errors import UserError
from dialoop.core.jobfile import parse
from dialoop.evaluate.suite import Question, load_suites, problems


def question(**fields: object) -> Question:
    return parse(Question, {"id": "q", "question": "How long is the warranty?", **fields})


@pytest.mark.parametrize(
    ("checks", "answer", "expected"),
    [
        ({"must_contain": ["five years"]}, "It is FIVE\n years.", ()),
        ({"must_contain": ["five years", "frame"]}, "five years", ("lacks `frame`",)),
        ({"any_of": ["5", "five"]}, "Five years", ()),
        ({"any_of": ["5", "five"]}, "Ten years", ("has none of `5`, `five`",)),
        ({"must_not_contain": ["lifetime"]}, "A Lifetime!", ("contains `lifetime`",)),
        ({"must_contain": ["30天"]}, "您有３０天。", ()),
        ({"exact": "yes"}, " Yes ", ()),
        ({"exact": "yes"}, "yes it is", ("is not `yes`",)),
        ({"regex": r"\b4\d\b"}, "in 45\ndays", ()),
        ({"regex": r"\b4\d\b"}, "in 450 days", (r"does not match `\b4\d\b`",)),
        ({"json_schema": {"type": "object"}}, '```json\n{"a": 1}\n```', ()),
        ({"json_schema": {"required": ["b"]}}, '{"a": 1}', ("$ lacks `b`",)),
        ({"json_schema": {}}, "1 2", ("is no JSON (Extra data: line 1 column 3 (char 2))",)),
    ],
)
def test_checks(checks: dict[str, object], answer: str, expected: tuple[str, ...]) -> None:
    assert problems(question(**checks), answer) == expected


def test_a_question_becomes_a_dialogue() -> None:
    turns = question(system="Be kind.", must_contain=["x"]).dialogue()
    assert [(t.role, t.text) for t in turns] == [
        ("system", "Be kind."),
        ("user", "How long is the warranty?"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds no list of questions"),
        ("- id: a\n  question: b\n", "`regex` or `json_schema`"),
        ("- id: a\n  must_contain: [x]\n", "either `question` or `messages`"),
        ("- id: a\n  question: b\n  must_contian: [x]\n", "entry 1: .*must_contian"),
        ("- 3\n", "entry 1: expected a mapping, got int"),
        ("- {id: a, question: b, regex: '['}\n", "regex: no regular expression: unterminated"),
        (
            "- {id: a, question: b, json_schema: {properties: {x: {dependentRequired: {}}}}}\n",
            r"json_schema: \$\.properties\.x: the keyword `dependentRequired` is not known",
        ),
        ("- [unclosed", "cannot read suite"),
        (
            "- id: a\n  messages: [{role: assistant, content: hi}]\n  must_contain: [x]\n",
            "the dialogue ends with assistant",
        ),
        (
            "- {id: a, question: b, must_contain: [x]}\n- {id: a, question: c, exact: d}\n",
            "two questions have the id `a`",
        ),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_suites([path])


def test_a_suite_may_be_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text('{"id": "a", "question": "x", "exact": "y"}\n\n{"id": "b", "question": "x", ')
    with pytest.raises(UserError, match="cannot read suite"):
        load_suites([path])
    path.write_text('{"id": "a", "question": "x", "exact": "y"}\n\n')
    assert [q.exact for q in load_suites([path])] == ["y"]


def test_a_missing_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read suite .*absent\.yaml`: no such file"):
        load_suites([tmp_path / "absent.yaml"])
