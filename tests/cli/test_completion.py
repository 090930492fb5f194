"""Shell completion: verbs, flags, kinds, and a shell that really sources the script."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dialoop.cli.completion import complete, script


def test_verbs_are_completed() -> None:
    assert complete(["doc"]) == ["doctor"]
    assert "completion" in complete([""])
    assert complete(["data", "in"]) == ["inspect"]
    assert complete(["dat"]) == ["data"]


def test_flags_are_completed() -> None:
    assert complete(["doctor", "--ti"]) == ["--timeout_s"]
    assert "--dry-run" in complete(["doctor", "--"])


def test_kinds_are_completed() -> None:
    assert complete(["evaluate", "--dtype", "b"]) == ["bf16"]
    assert complete(["evaluate", "--tasks", "lo"]) == ["loss"]


def test_files_are_left_to_the_shell() -> None:
    assert complete(["doctor", "job"]) == []
    assert complete(["doctor", "--timeout_s", "1"]) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_accepts_the_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine")
    checked = subprocess.run(
        [shell, "-n"], input=script([shell]), text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_bash_completes(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not on this machine")
    program = tmp_path / "dialoop"
    program.write_text(
        f"#!{sys.executable}\nfrom dialoop.cli.main import entry\nentry()\n", encoding="utf-8"
    )
    program.chmod(0o755)
    code = script(["bash"]) + (
        'COMP_WORDS=(dialoop doctor --timeo); COMP_CWORD=2; _dialoop; echo "${COMPREPLY[@]}"'
    )
    found = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert found.stdout.strip() == "--timeout_s"
