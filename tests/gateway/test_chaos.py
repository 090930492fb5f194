"""Engines die and freeze, clients leave, configurations change: the bars, in short forms."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from benchmarks.gateway import faults, upkeep

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of each gateway's own."""
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", sorted(faults.CHECKS.keys() - {"many_aborts"}))
def test_what_clients_see_of_failures_is_true(name: str, tmp_path: Path) -> None:
    with faults.staged("dialoop-bare", tmp_path) as scene:
        found = asyncio.run(faults.CHECKS[name](scene))
    assert found
    assert not [one for one in found if one.is_met is False]


def test_nothing_is_left_of_clients_that_left(tmp_path: Path) -> None:
    with faults.staged("dialoop-bare", tmp_path) as scene:
        found = asyncio.run(faults.many_aborts(scene, 400))
    judged = [one for one in found if one.name != "many_aborts_cpu"]  # a busy machine's is noise
    assert len(judged) == 3
    assert not [one for one in judged if one.is_met is False]


@pytest.mark.parametrize("change", [upkeep.reload, upkeep.restart])
def test_nobody_notices_a_new_configuration_or_process(change, tmp_path: Path) -> None:
    with faults.staged("dialoop-bare", tmp_path, num_engines=1) as scene:
        found = asyncio.run(change(scene, 1))
    assert next(one for one in found if one.name.endswith("_bad")).is_met
