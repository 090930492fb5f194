"""Tool calls: the AST match, BFCL's files, dialogues of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.fakes import Puppet

from dialoop.chat.message import Tool, ToolCall
from dialoop.core.errors import UserError
from dialoop.evaluate.calls import problems, standard_schema
from dialoop.evaluate.tasks import Material, Prompt, Reply
from dialoop.evaluate.tasks.tool_calls import ToolCalls

NOTHING = Material(None, ())
TOOL = Tool(
    "area_of",
    "",
    {
        "type": "object",
        "properties": {"base": {"type": "integer"}, "unit": {"type": "string"}, "at": {}},
        "required": ["base"],
    },
)
WANTED = {"area.of": {"base": [10], "unit": ["square cm", ""], "at": [{"x": [1, 2]}, ""]}}


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"base": 10}, ()),
        ({"base": 10, "unit": "Square-CM"}, ()),
        ({"base": 10, "at": {"x": 2}}, ()),
        ({"base": 10, "at": {"x": 3}}, ("`at` is {'x': 3}, none of [{'x': [1, 2]}, '']",)),
        ({"base": 10.0}, ("`base` is 10.0, none of [10]",)),
        ({"base": "10"}, ("`base` is '10', none of [10]",)),
        ({"base": True}, ("`base` is True, none of [10]",)),
        ({"unit": "square cm"}, ("`area.of` lacks `base`",)),
        ({"base": 10, "depth": 1}, ("`area.of` has no argument `depth` to be given",)),
    ],
)
def test_arguments(arguments: dict[str, Any], wrong: tuple[str, ...]) -> None:
    assert problems([ToolCall("area.of", arguments)], [WANTED], [TOOL]) == wrong
    assert problems([ToolCall("area_of", arguments)], [WANTED], [TOOL]) == wrong


def test_a_required_list_and_a_left_out_argument() -> None:
    wanted = {"f": {"names": [["a", "b"]], "n": [1]}}
    assert problems([ToolCall("f", {"names": ["A", "b"], "n": 1.0})], [wanted], []) == ()
    assert problems([ToolCall("f", {"names": ["b", "a"], "n": 1})], [wanted], [])
    assert problems([ToolCall("f", {"names": ["a", "b"]})], [wanted], []) == ("`f` lacks `n`",)


def test_parallel_calls_match_in_any_order_and_each_once() -> None:
    wanted = [{"f": {"n": [1, 2]}}, {"f": {"n": [1]}}]
    one, two = ToolCall("f", {"n": 1}), ToolCall("f", {"n": 2})
    assert problems([one, two], wanted, []) == ()
    assert problems([two, one], wanted, []) == ()
    assert problems([two, two], wanted, []) == ("`n` is 2, none of [1]",)
    assert problems([one], wanted, []) == ("1 calls, 2 wanted",)
    assert problems([two, ToolCall("g", {})], wanted, [])


def test_bfcl_types_become_json_schema() -> None:
    given = {"type": "dict", "properties": {"a": {"type": "float"}, "b": {"type": "any"}}}
    assert standard_schema(given) == {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {}},
    }


def oracle(folder: Path) -> Any:
    """Answers with the first allowed values of the real answers."""
    wanted: dict[str, list[dict[str, Any]]] = {}
    for file in folder.glob("BFCL_v4_*.json"):
        answers = folder / "possible_answer" / file.name
        if not answers.exists() or "multi_turn" in file.name:
            continue
        known = {
            r["id"]: r["ground_truth"] for r in map(json.loads, answers.read_text().splitlines())
        }
        for row in map(json.loads, file.read_text().splitlines()):
            wanted[row["question"][0][-1]["content"] + str(len(row["function"]))] = known[row["id"]]

    def first(value: Any) -> Any:
        return {k: first(v[0]) for k, v in value.items()} if isinstance(value, dict) else value

    def say(prompt: Prompt) -> Reply:
        calls = wanted.get(prompt.messages[-1].text + str(len(prompt.tools)), [])
        return Reply(
            "",
            tuple(
                ToolCall(name, {k: first(v[0]) for k, v in arguments.items() if v and v[0] != ""})
                for call in calls
                for name, arguments in call.items()
            ),
        )

    return say


def test_the_real_files_pass_with_their_own_answers(shared_data: Path) -> None:
    folder = shared_data / "tools" / "bfcl"
    names = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple")
    files = [str(folder / f"BFCL_v4_{name}.json") for name in (*names, "irrelevance")]
    measured = ToolCalls(files=files).measure(Puppet(say=oracle(folder)), NOTHING)
    failed = [(case.id, case.problems) for case in measured.cases if not case.passed]
    assert len(measured.cases) == 200 + 100 + 100 + 100 + 129 + 120
    assert len(failed) <= 6, failed
    assert measured.grids[0].rows == (*names, "irrelevance")
    silent = ToolCalls(files=files).measure(Puppet(), NOTHING)
    passed = {case.group for case in silent.cases if case.passed}
    assert passed == {"irrelevance"}, "an answer without calls is right only where nothing fits"


def test_dialogues_that_end_with_calls(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": '{"n": 1}'}}
    path = tmp_path / "mine.jsonl"
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    path.write_text(json.dumps({"messages": turns, "tools": [{"name": "f"}], "id": "x"}) + "\n")
    right = Puppet(say=lambda _: Reply("", (ToolCall("f", {"n": 1}),)))
    measured = ToolCalls(files=[str(path)]).measure(right, NOTHING)
    assert [(c.id, c.passed) for c in measured.cases] == [("mine/x", True)]
    assert right.asked[0].tools[0].name == "f"
    path.write_text(json.dumps({"messages": turns[:1]}) + "\n")
    with pytest.raises(UserError, match="the dialogue ends with user"):
        ToolCalls(files=[str(path)]).measure(right, NOTHING)


def test_multi_turn_files_and_lost_answers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "BFCL_v4_x.json"
    path.write_text('{"id": "1", "question": [[]], "function": []}\n')
    with pytest.raises(UserError, match=r"no answers for .*BFCL_v4_x\.json"):
        ToolCalls(files=[str(path)]).measure(Puppet(), NOTHING)
    path.write_text('{"id": "1", "question": [[]], "involved_classes": []}\n')
    with pytest.raises(UserError, match="needs the simulated systems"):
        ToolCalls(files=[str(path)]).measure(Puppet(), NOTHING)
