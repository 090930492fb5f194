"""Doctor: what is here is named, what is missing comes with its command."""

from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from dialoop.core.events import ignore
from dialoop.jobs.doctor import ENGINES, EXTRAS, DoctorJob, run

if TYPE_CHECKING:
    from dialoop.core.events import Event


Report = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def report() -> Report:
    found = run(DoctorJob(), ignore)
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(found.text())
    return capture.get(), found.model_dump(mode="json")


def test_the_machine_and_every_extra_are_reported(report: Report) -> None:
    text, data = report
    assert data["memory_bytes"] > 2**28
    assert data["accelerator_problem"] is None
    assert {extra["name"] for extra in data["extras"]} == set(EXTRAS)
    assert set(data["engines"]) == set(ENGINES)
    assert "accelerator" in text
    assert all(f"  {name}" in text for name in EXTRAS)


def test_what_is_missing_comes_with_its_command(report: Report) -> None:
    text, data = report
    for extra in data["extras"]:
        is_missing = None in extra["versions"].values()
        assert (extra["command"] is not None) == is_missing
        if is_missing:
            assert f"pip install 'dialoop[{extra['name']}]'" in text


def test_an_accelerator_that_does_not_answer_is_reported() -> None:
    events: list[Event] = []
    found = run(DoctorJob.model_construct(timeout_s=0.001), events.append)
    assert found.accelerator_problem == "no answer within 0.001 s"
    assert any("could not be asked" in str(event) for event in events)


def test_the_extras_are_those_of_the_project() -> None:
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = set(project["optional-dependencies"]) - {"all", "dev"}
    assert set(EXTRAS) <= known
