"""What the tests of data share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialoop.core.events import ignore
from dialoop.data.run import ConvertResult, convert
from dialoop.data.spec import ConvertJob

Convert = Callable[..., ConvertResult]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


@pytest.fixture
def to_canonical(tmp_path: Path) -> Convert:
    """Convert a path with the settings given, into `out.jsonl`."""

    def run(*paths: Path | str, **fields: Any) -> ConvertResult:
        request = {"paths": [str(p) for p in paths], "output": tmp_path / "out.jsonl"} | fields
        return convert(ConvertJob.model_validate(request), ignore)

    return run
