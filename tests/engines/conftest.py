"""A tiny checkpoint, and a cache of its own for what is converted from it."""

from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory):
    """A cache folder that all engine tests share."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIALOOP_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def checkpoint(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the product's own family."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "internlm3", "internlm3")
