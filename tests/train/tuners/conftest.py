"""A cache of its own for each test, and dialogues to learn."""

from pathlib import Path

import pytest
from tests.train.small import write_dialogues


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    return write_dialogues(tmp_path / "data.jsonl")
