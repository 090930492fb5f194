"""The example files, and files of the user's own."""

from pathlib import Path

import pytest

from dialoop.core.errors import MachineError, UserError
from dialoop.quickstart.material import PLACES, find
from dialoop.quickstart.spec import QuickstartJob


def test_the_example_company_is_found() -> None:
    files = find(QuickstartJob())
    assert files.dataset.name == "service_desk.jsonl"
    assert files.held_out.is_file()
    assert files.suite.is_file()


def test_the_wheel_holds_the_examples_where_they_are_looked_for(tmp_path: Path) -> None:
    company = tmp_path / "company"
    company.mkdir()
    for name in ("service_desk.jsonl", "held_out.jsonl", "questions.yaml"):
        (company / name).write_text("x")
    assert find(QuickstartJob(), (tmp_path / "absent", company)).suite.parent == company
    assert PLACES[1].parts[-3:] == ("dialoop", "examples", "company")


def test_own_files_are_taken(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("x")
    assert find(QuickstartJob(dataset=own)).dataset == own


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.csv` is no file"):
        find(QuickstartJob(dataset=tmp_path / "absent.csv"))
    with pytest.raises(MachineError, match=r"`service_desk\.jsonl` is not installed"):
        find(QuickstartJob(), (tmp_path,))
