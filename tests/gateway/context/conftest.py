"""Counters over the tiny tokenizer, one for each kind of template."""

import pytest
from tests.gateway.context.dialogues import SOURCES, make_template

from dialoop.gateway.context.exact import TemplateCounter


@pytest.fixture(scope="session", params=sorted(SOURCES))
def any_counter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """An exact counter, for every kind of template in turn."""
    folder = tmp_path_factory.mktemp("template")
    return TemplateCounter(make_template(folder, request.param), window_tokens=4096)


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory):
    """An exact counter over ChatML."""
    return TemplateCounter(
        make_template(tmp_path_factory.mktemp("chatml"), "chatml"), window_tokens=4096
    )
