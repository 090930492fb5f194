"""The suites pass before the scripted engine; the page says what does not."""

from pathlib import Path

import pytest
from tests.conformance import run
from tests.gateway.scripted import MODEL

pytest.importorskip("llm_comply")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[run.Json]]:
    """What all suites say of a gateway."""
    folder = tmp_path_factory.mktemp("conformance")
    with run.scripted() as port:
        return run.suites(f"http://127.0.0.1:{port}/v1", MODEL, folder)


@pytest.mark.parametrize("name", run.FORMATS)
def test_nothing_fails(found: dict[str, list[run.Json]], name: str) -> None:
    ran = [one for one in found[name] if one["status"] != "skipped"]
    assert len(ran) >= 8
    assert [one for one in ran if one["status"] != "passed"] == []


def test_the_page_tells_each_result(found: dict[str, list[run.Json]]) -> None:
    broken = {name: [dict(one) for one in results] for name, results in found.items()}
    broken["openai-chat"][0] |= {"status": "failed", "errors": ["a|b"]}
    text = run.page({"one": found, "other": broken}, {})
    assert "| test | one | other |" in text
    assert "(`chat-basic-response`) | passed | failed: a\\|b |" in text
    assert "| **passed** | 8 of 8 | 7 of 8 |" in text


def test_the_stored_page_is_of_this_version() -> None:
    text = Path(run.PAGE).read_text(encoding="utf-8")
    told = text[text.index("## Deviations") :]
    assert told == "\n".join(["## Deviations", "", *(f"- {one}" for one in run.DEVIATIONS), ""])
    assert "failed" not in "".join(
        line.rsplit("|", 2)[-2] for line in text.split("\n") if "(`" in line
    )
