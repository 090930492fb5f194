"""A tiny checkpoint and its template."""

from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint

from dialoop.chat.template import Template


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory):
    """A cache folder that all serving tests share."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIALOOP_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the product's own family."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-model", "internlm3")


@pytest.fixture(scope="session")
def template(checkpoint: Path) -> Template:
    """The checkpoint's own."""
    return Template.from_folder(checkpoint)
