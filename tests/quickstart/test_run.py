"""The whole quickstart on a tiny model: from files to answers over HTTP, and once more."""

import json
from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint

from dialoop.core.errors import UserError
from dialoop.core.events import Event, Stage, ignore
from dialoop.core.files import lock_folder
from dialoop.core.jobfile import parse
from dialoop.quickstart.run import run
from dialoop.quickstart.spec import QuickstartJob

SUITE = '- {id: order, question: "Where is my order?", must_contain: [morning]}\n'


def write_dialogues(path: Path, count: int) -> Path:
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"Where is my order {n}?"},
                    {"role": "assistant", "content": "It left our warehouse this morning."},
                ]
            }
        )
        for n in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuickstartJob:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    (tmp_path / "suite.yaml").write_text(SUITE)
    fields = {
        "model": str(make_tiny_checkpoint(tmp_path / "tiny")),
        "output": str(tmp_path / "out"),
        "dataset": str(write_dialogues(tmp_path / "train.jsonl", 24)),
        "held_out": str(write_dialogues(tmp_path / "held_out.jsonl", 3)),
        "suite": str(tmp_path / "suite.yaml"),
        "device": "cpu",
        "max_new_tokens": 8,
        "epochs": 2,
    }
    return parse(QuickstartJob, fields)


@pytest.mark.slow
def test_from_dialogues_to_answers_and_nothing_twice(job: QuickstartJob) -> None:
    events: list[Event] = []
    first = run(job, events.append)
    assert first.loss_after < first.loss_before
    assert first.served
    assert [a.question for a in first.answers] == ["Where is my order?"]
    assert (first.train_dialogues, first.held_out_dialogues) == (24, 3)
    assert first.report.is_file()
    assert (first.model / "config.json").is_file()
    assert first.reused == []
    assert sum(first.stage_seconds.values()) <= first.seconds + 0.1  # both are rounded
    assert any(isinstance(e, Stage) and "ask 1 questions at http" in e.title for e in events)

    second = run(job, ignore)
    assert second.reused == ["tuned", "merged", "report"]
    assert (second.loss_before, second.loss_after) == (first.loss_before, first.loss_after)
    assert second.served


def test_two_runs_into_one_folder_are_refused(job: QuickstartJob) -> None:
    with (
        lock_folder(job.output, "quickstart"),
        pytest.raises(UserError, match="is in use by another run"),
    ):
        run(job, ignore)


def test_the_json_has_the_promised_fields() -> None:
    from dialoop.quickstart.spec import Answer, QuickstartResult

    promised = {"loss_before", "loss_after", "seconds", "served", "answers"}
    assert promised <= set(QuickstartResult.model_fields)
    assert set(Answer.model_fields) == {"question", "before", "after"}


def test_the_summary_keeps_every_character_of_an_answer() -> None:
    from rich.console import Console

    from dialoop.quickstart.spec import Answer, QuickstartResult

    chinese = "\u8fd4" * 60
    result = QuickstartResult(
        loss_before=3.0,
        loss_after=1.5,
        seconds=100,
        served=True,
        answers=[Answer(question="q [bold]", before="", after=chinese)],
        checks_before=0,
        checks_after=1,
        train_dialogues=2,
        held_out_dialogues=1,
        reused=[],
        stage_seconds={},
        download_seconds=1,
        client="openai 3",
        adapter=Path("a"),
        model=Path("m"),
        report=Path("r"),
    )
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(result.text())
    shown = captured.get()
    assert shown.count("\u8fd4") == 60
    assert "q [bold]" in shown
    assert "3.000 -> 1.500 (-50 %)" in shown
    assert "0 -> 1 of 1" in shown
