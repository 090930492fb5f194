"""A tiny checkpoint and dialogues, made once."""

import json
from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "internlm3")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as blocks of 128 need it: 8 heads would do, 4 of 128 channels are what is made."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "wide", hidden=256, layers=1)


@pytest.fixture(scope="session")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [
        json.dumps({
            "messages": [
                {"role": "user", "content": f"Where is order {n}?"},
                {"role": "assistant", "content": f"It left {n * 7 % 13} days ago, truck {n % 5}."},
            ]
        })
        for n in range(60)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
