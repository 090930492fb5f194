"""The table of refusals is made by asking, for every member of the families."""

import pytest
from tests.architecture import combinations

from dialoop.core.schema import family


def test_every_member_is_asked() -> None:
    axes = combinations.axes()
    assert axes["objective"].keys() == family("dialoop.train.objectives").keys()
    assert axes["tuner"].keys() == family("dialoop.train.tuners").keys()
    assert "auto" not in axes["parallel"]


def test_a_refused_pair_has_its_reason() -> None:
    (words,) = [
        reason
        for one, other, reason in combinations.refusals()
        if "`galore`" in one and "`fsdp`" in other
    ]
    assert "must have whole" in words


def test_a_setting_that_is_refused_alone_is_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combinations, "why_not", lambda changes: "never" if "a" in changes else "")
    monkeypatch.setattr(
        combinations, "axes", lambda: {"one": {"a": {"a": 1}}, "other": {"b": {"b": 1}}}
    )
    assert combinations.refusals() == []
