"""The environment is read in one place, and handed on as it should be."""

import pytest

from dialoop.core import env


def test_children_of_libraries_know_nothing_of_the_job_s_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
    for name in names:
        monkeypatch.setenv(name, "7")
    with env.without_launcher():
        assert not set(names) & env.variables().keys()
        assert env.world_size() == 1
    assert {env.variables()[name] for name in names} == {"7"}
