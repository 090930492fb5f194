"""Batch inference: prompts of any layout, resume, torn files, answers in the input's order."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.engines.contract import make_adapter

from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.core.events import Event, Progress, ignore
from dialoop.data.sample import Sample
from dialoop.serve.infer import InferResult, read_rows, run
from dialoop.serve.spec import InferJob

ROWS: list[dict[str, Any]] = [
    {"id": "a", "messages": [{"role": "user", "content": "Where is my order?"}]},
    {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]},
    {"instruction": "Return a lamp.", "input": "", "output": "Within thirty days."},
    {"messages": [{"role": "user", "content": "x " * 600}]},
    {"messages": [{"role": "user", "content": "Where is my order?"}]},
]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{broken\n")
    return path


def job(checkpoint: Path, given: Path, **fields: Any) -> InferJob:
    settings: dict[str, Any] = {"engine": "transformers", "device": "cpu", "threads": 1}
    settings |= {"max_new_tokens": 8, "output": str(given.parent / "out.jsonl")}
    return InferJob(model=str(checkpoint), input=str(given), **(settings | fields))


def lines(given: Path) -> list[dict[str, Any]]:
    text = (given.parent / "out.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_know_each_other_by_id_or_content() -> None:
    ask = (message("user", "a"),)
    answered = (*ask, message("assistant", "b"))
    samples = [Sample(ask), Sample(answered), Sample(ask, extra=(("id", 7),)), Sample(text="t")]
    rows = read_rows(samples, None)
    assert [row.messages for row in rows] == [ask, ask, ask, ()]
    first, second, third, fourth = (row.id for row in rows)
    assert second == f"{first}-2"
    assert third == "7"
    assert fourth not in {first, second, third}
    assert rows[3].text == "t"


def test_a_system_message_is_put_before_dialogues_without_one() -> None:
    own = (message("system", "own"), message("user", "a"))
    rows = read_rows([Sample((message("user", "a"),)), Sample(own)], "given")
    assert [row.messages[0].text for row in rows] == ["given", "own"]


def test_every_row_is_answered_and_none_twice(checkpoint: Path, given: Path) -> None:
    events: list[Event] = []
    first = run(job(checkpoint, given), events.append)
    assert (first.answered, first.kept, first.failed, first.rejected) == (4, 0, 1, 1)
    done = [e.done for e in events if isinstance(e, Progress) and e.task == "answer"]
    assert done == [1, 2, 3, 4, 5]

    found = lines(given)
    asked = [row.get("messages", [{"content": "Return a lamp."}])[0]["content"] for row in ROWS]
    assert [item["messages"][0]["content"] for item in found] == asked
    assert found[0]["id"] == "a"
    assert found[0]["output"] == found[4]["output"] == found[0]["messages"][-1]["content"]
    assert found[0]["finish_reason"] in {"stop", "length"}
    assert found[0]["usage"]["total_tokens"] > found[0]["usage"]["prompt_tokens"]
    assert "leave no room" in found[3]["error"]
    total = sum(item["usage"]["completion_tokens"] for item in found if "usage" in item)
    assert first.generated_tokens == total

    before = [item for item in found if "error" not in item]
    again = run(job(checkpoint, given), ignore)
    assert (again.answered, again.kept, again.failed) == (0, 4, 1)
    assert [item for item in lines(given) if "error" not in item] == before


def test_a_run_that_was_killed_goes_on(checkpoint: Path, given: Path) -> None:
    run(job(checkpoint, given), ignore)
    output = given.parent / "out.jsonl"
    whole = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(whole[0] + whole[1] + whole[2][:40])  # as a kill while writing leaves it
    result = run(job(checkpoint, given), ignore)
    assert (result.answered, result.kept) == (2, 2)
    assert output.read_bytes().splitlines(keepends=True) == whole


def test_an_output_of_other_settings_is_not_mixed_up(checkpoint: Path, given: Path) -> None:
    run(job(checkpoint, given), ignore)
    before = lines(given)
    with pytest.raises(UserError, match="line 1 is no answer of this model with these settings"):
        run(job(checkpoint, given, max_new_tokens=9), ignore)
    assert lines(given) == before


def test_an_adapter_answers_and_another_one_is_not_mixed_up(
    checkpoint: Path, given: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", checkpoint)
    first = run(job(adapter, given), ignore)
    assert (first.answered, first.failed) == (4, 1)
    assert run(job(adapter, given), ignore).kept == 4
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 2
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="line 1 is no answer of this model with these settings"):
        run(job(adapter, given), ignore)


def test_a_file_that_is_no_output_is_not_overwritten(checkpoint: Path, given: Path) -> None:
    with pytest.raises(UserError, match="is no answer of this model"):
        run(job(checkpoint, given, output=str(given)), ignore)
    assert given.read_text().endswith("{broken\n")


def test_an_output_that_cannot_be_a_file_is_refused_at_once(checkpoint: Path, given: Path) -> None:
    for output, words in ((given.parent, "is a folder"), (given / "x", "is a file")):
        with pytest.raises(UserError, match=words):
            run(job(checkpoint, given, output=str(output)), ignore)


def test_the_text_says_how_many() -> None:
    result = InferResult(
        output="o", answered=3, kept=1, failed=0, rejected=2, generated_tokens=50, seconds=2.0
    )
    assert result.text() == (
        "3 rows answered, 1 kept, 0 failed, 2 unreadable\n50 tokens in 2.0 s (25 tokens/s): o"
    )
