"""The program as a process: exit codes, what goes to which stream, help, dry runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.program import PROGRAM, dialoop

from dialoop import __version__

ROOT = Path(__file__).parents[2]


def call(*words: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return dialoop(*words, root=ROOT, typed=typed, **environment)


def test_text_goes_to_stdout_and_progress_to_stderr() -> None:
    done = call("trial")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "你好"
    assert done.stderr.splitlines() == [
        "== Trying",
        "rows: 1/2 rows, 50 %",
        "rows: 2/2 rows, 100 %",
        "step 1  loss_nats 2.5  lr 0.1",
        "warning: careful",
        "wrote report: report.html",
    ]


def test_json_is_the_only_thing_on_stdout() -> None:
    done = call("trial", "--json")
    assert json.loads(done.stdout) == {"said": ["你好"]}
    assert "a library prints this" in done.stderr
    assert "a child prints this" in done.stderr


ENDS = [
    ("user", 2, "UserError", "the request is wrong", "ask otherwise"),
    ("machine", 3, "MachineError", "no such device", None),
    ("upstream", 4, "UpstreamError", "the hub is down", None),
    (
        "full",
        3,
        "MachineError",
        "the machine refused: no space left on device at `/some/file`",
        "free",
    ),
    ("memory", 3, "MachineError", "out of memory", "make the job smaller"),
    ("interrupt", 130, "Interrupted", "interrupted", None),
    ("bug", 1, "ZeroDivisionError", "this is a bug in dialoop: ZeroDivisionError('oh')", "report"),
]


@pytest.mark.parametrize(("end", "code", "kind", "message", "hint"), ENDS)
def test_exit_codes_and_errors(
    end: str, code: int, kind: str, message: str, hint: str | None
) -> None:
    done = call("trial", "--end", end, "--json")
    assert done.returncode == code
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["message"]) == (kind, message)
    assert (error["hint"] or "").startswith(hint or "")
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == (end == "bug")


def test_errors_leave_stdout_empty_without_json() -> None:
    done = call("trial", "--ennd", "well")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: `--ennd`: unknown flag; did you mean `--end`?\n"
        "hint: add --help to see the flags of this verb\n"
    )


def test_bad_flags_are_json_errors_too() -> None:
    done = call("trial", "--times", "-1", "--json")
    assert done.returncode == 2
    message = json.loads(done.stdout)["error"]["message"]
    assert message == "--times: input should be greater than or equal to 0, got `-1`"


def test_dry_run_prints_the_job_and_the_plan_and_runs_nothing() -> None:
    done = call("trial", "--end", "bug", "--dry-run")
    assert done.returncode == 0
    assert done.stdout == "end: bug\ntimes: 1\n\nwould end bug\n"
    data = json.loads(call("trial", "--dry-run", "--json").stdout)
    assert data == {"job": {"end": "well", "times": 1}, "plan": {"said": ["would end well"]}}


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "trial", "--times", "200000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        errors = child.stderr.read().decode()
        assert child.wait() == 141
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_an_interactive_verb_reads_and_writes() -> None:
    done = call("converse", typed="你好\nbye\n")
    assert done.returncode == 0
    assert "heard 你好\n" in done.stdout
    assert done.stdout.endswith("你好\nbye\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trail"], "unknown verb `trail`; did you mean `trial`?"),
        (["trial", "--end", "wel"], "--end: unknown `wel`; did you mean `well`? (known: well,"),
        (["zzz"], "unknown verb `zzz`"),
        (["completion", "cmd"], "completion: unknown shell `cmd`"),
        (["completion"], "completion: no shell named"),
        (["trial", "nothing.yaml"], "cannot read job file `nothing.yaml`: no such file"),
    ],
)
def test_complaints(words: list[str], message: str) -> None:
    done = call(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_verbs_of_two_words_and_other_names() -> None:
    assert call("trial", "twice").stdout.endswith("你好\n")
    assert call("attempt").stdout.endswith("你好\n")


def test_version() -> None:
    assert call("--version").stdout == f"dialoop {__version__}\n"
    assert json.loads(call("--version", "--json").stdout) == {"version": __version__}


def test_help_lists_verbs_by_group_without_colour() -> None:
    done = call("--help", COLUMNS="100")
    assert done.returncode == 0
    assert "  doctor " in done.stdout.partition("\nThis machine\n")[2]
    assert "  trial (attempt) " in done.stdout.partition("\nUse\n")[2]
    assert "\x1b" not in done.stdout


def test_help_fits_the_width() -> None:
    for width in (50, 120):
        lines = call("trial", "--help", COLUMNS=str(width)).stdout.splitlines()
        assert max(map(len, lines)) <= width
    assert any("How it ends. [well |" in line for line in lines)


def test_no_color_is_respected_and_colour_can_be_forced() -> None:
    assert "\x1b" in call("--help", FORCE_COLOR="1").stdout
    forced = call("--help", FORCE_COLOR="1", NO_COLOR="1").stdout
    assert "\x1b[36m" not in forced
