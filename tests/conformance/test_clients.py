"""What the page says of clients; the clients themselves need the internet: `make conformance`."""

import shutil
import sys
from pathlib import Path

import pytest
from tests.conformance import clients, run


def test_without_node_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("node") is None
    assert clients.make_node(tmp_path) == "no node"


def test_a_client_that_breaks_fails_all_checks() -> None:
    found = clients.ask([sys.executable, "-c", "raise SystemExit('it broke')"])
    assert found == dict.fromkeys(clients.CHECKS, "failed: it broke\n")


def test_the_section_tells_each_result() -> None:
    passed = dict.fromkeys(clients.CHECKS, "passed")
    found = {"openai-node": passed, "langchain": passed | {"stream": "failed: a|b\nc"}}
    lines = clients.section(found)
    assert "| streamed answer | passed | failed: a\\|b c |" in lines
    assert len([line for line in lines if line.endswith(" passed |")]) == len(clients.CHECKS) - 1


def test_the_stored_page_is_of_these_versions() -> None:
    text = run.PAGE.read_text(encoding="utf-8")
    assert "| check | " + " | ".join(clients.TITLES.values()) + " |" in text
    told = text[text.index("## Clients") : text.index("## Deviations")]
    assert all(
        f"| {title} | passed | passed | passed |" in told for title in clients.CHECKS.values()
    )
