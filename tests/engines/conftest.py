"""A tiny checkpoint, a cache of its own for what is converted from it, engines started once."""

import asyncio
from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory):
    """A cache folder that all engine tests share."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIALOOP_HOME", str(folder))
        patch.setenv("HOME", str(folder))  # shows what a library leaves there
        patch.delenv("CI", raising=False)
        yield folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the product's own family."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "internlm3", "internlm3")


@pytest.fixture(scope="class")
def runner():
    """One event loop for all tests of a class, as engines are bound to theirs."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="class")
def engine(request: pytest.FixtureRequest, runner: asyncio.Runner, checkpoint: Path):
    """Started once; tests leave it without open requests."""
    assert request.cls
    engine = request.cls.opened(checkpoint)
    runner.run(engine.start())
    yield engine
    runner.run(engine.stop())


@pytest.fixture(scope="class")
def narrow(request: pytest.FixtureRequest, runner: asyncio.Runner, checkpoint: Path):
    """An engine that answers one request at a time."""
    assert request.cls
    engine = request.cls.opened(checkpoint, max_concurrent=1)
    runner.run(engine.start())
    yield engine
    runner.run(engine.stop())
