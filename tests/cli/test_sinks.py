"""The terminal view: plain lines in a file, bars on a terminal, units that people read."""

import io

import pytest
from rich.console import Console

from dialoop.cli.sinks import TerminalSink, amount, duration, metrics_line, progress_line
from dialoop.core.events import Metrics, Note, Progress, Stage


def test_plain_lines_come_seldom_but_the_last_one_always() -> None:
    stream = io.StringIO()
    with TerminalSink(Console(file=stream, width=80), every_s=1000) as sink:
        for done in range(5):
            sink(Progress("train", done, 4, "steps"))
            sink(Metrics(done, {"loss_nats": 1.0}))
    lines = stream.getvalue().splitlines()
    assert lines == ["train: 0/4 steps, 0 %", "step 0  loss_nats 1", "train: 4/4 steps, 100 %"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_validation_is_shown_between_steps_that_are_not(is_terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=80, color_system=None)
    with TerminalSink(console, every_s=1000) as sink:
        for step in range(3):
            sink(Metrics(step, {"loss": 1.0}))
        sink(Metrics(2, {"validation_loss": 2.0}))
    assert stream.getvalue().splitlines() == ["step 0  loss 1", "step 2  validation_loss 2"]


def test_a_stage_measures_its_tasks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0, 110.0])
    monkeypatch.setattr("dialoop.cli.sinks.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    with TerminalSink(Console(file=stream, width=80)) as sink:
        for title, *done in (("one", 10), ("two", 0, 10)):
            sink(Stage(title))
            for count in done:
                sink(Progress("read", count, 10, "rows"))
    assert stream.getvalue().splitlines() == [
        "== One", "read: 10/10 rows, 100 %",
        "== Two", "read: 0/10 rows, 0 %", "read: 10/10 rows, 100 %, 1/s",
    ]  # fmt: skip


def test_markup_in_messages_is_shown_as_it_is() -> None:
    stream = io.StringIO()
    with TerminalSink(Console(file=stream, width=20)) as sink:
        sink(Note("a [bold]b[/bold] and a long line that is not broken"))
    assert stream.getvalue() == "a [bold]b[/bold] and a long line that is not broken\n"


def test_a_terminal_gets_bars_that_survive_an_error() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with pytest.raises(ValueError, match="stop"), TerminalSink(console) as sink:  # noqa: PT012
        sink(Stage("training"))
        sink(Progress("train", 1, 4, "steps", "loss 2.1"))
        raise ValueError("stop")
    shown = stream.getvalue()
    assert "== Training" in shown
    assert "1/4 steps" in shown
    assert "loss 2.1" in shown
    assert shown.rstrip().endswith("\x1b[?25h"), "the cursor must be shown again"


@pytest.mark.parametrize(
    ("event", "elapsed_s", "line"),
    [
        (Progress("train", 10, 40, "steps"), 5, "train: 10/40 steps, 25 %, 2/s, 15 s left"),
        (
            Progress("download", 3_500_000, 10_000_000, "bytes"),
            7,
            "download: 3.5 MB of 10 MB, 35 %, 500 kB/s, 13 s left",
        ),
        (Progress("read", 7, None, "rows", "a.jsonl"), 0, "read: 7 rows, a.jsonl"),
    ],
)
def test_progress_lines(event: Progress, elapsed_s: float, line: str) -> None:
    assert progress_line(event, elapsed_s) == line


def test_amounts_and_times() -> None:
    assert amount(Progress("x", 1_500_000_000, None, "bytes")) == "1.5 GB"
    assert [duration(s) for s in (5, 200, 7500)] == ["5 s", "3 min 20 s", "2 h 5 min"]


def test_loss_and_speed_come_first_in_a_metrics_line() -> None:
    event = Metrics(3, {"zeta": 1, "lr": 1e-4, "tokens_per_s": 1234.5, "loss_nats": 2})
    assert metrics_line(event) == "step 3  loss_nats 2  tokens_per_s 1234  lr 0.0001  zeta 1"
