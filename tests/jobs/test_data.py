"""The data verbs take a model by any name, where data alone takes a folder."""

import json
from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint

from dialoop.core.errors import UserError
from dialoop.core.events import ignore
from dialoop.data.spec import Cleaning, ConvertJob, InspectJob
from dialoop.jobs.data import convert, inspect
from dialoop.models.sources import COMPLETE


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    turns = ({"query": "hi", "response": "yes"}, {"query": "why " * 40, "response": "so"})
    file.write_text("".join(json.dumps(row) + "\n" for row in turns), encoding="utf-8")
    return str(file)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of this test alone, in which the model `starter` has been pulled."""
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home/models/registry/starter"
    make_tiny_checkpoint(folder)
    (folder / COMPLETE).touch()
    return folder


@pytest.mark.usefixtures("home")
def test_a_model_by_its_short_name_counts_tokens(rows: str, tmp_path: Path) -> None:
    found = inspect(InspectJob(paths=[rows], model="starter"), ignore)
    assert found.tokens is not None
    assert len(found.previews) == 2
    short = Cleaning(max_tokens=20)
    job = ConvertJob(paths=[rows], model="starter", output=tmp_path / "out.jsonl", cleaning=short)
    counts = convert(job, ignore)
    assert (counts.kept, counts.filtered) == (1, 1)


def test_an_adapter_without_a_tokenizer_is_measured_by_its_base(
    rows: str, tmp_path: Path, home: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    named = json.dumps({"base_model_name_or_path": str(home)})
    (adapter / "adapter_config.json").write_text(named, encoding="utf-8")
    by_adapter, by_base = (
        inspect(InspectJob(paths=[rows], model=str(model)), ignore).tokens
        for model in (adapter, home)
    )
    assert by_adapter == by_base is not None


def test_an_unknown_model_and_no_model(rows: str) -> None:
    with pytest.raises(UserError, match="unknown model `startr`; did you mean `starter`"):
        inspect(InspectJob(paths=[rows], model="startr"), ignore)
    assert inspect(InspectJob(paths=[rows]), ignore).tokens is None
