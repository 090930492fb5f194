"""The transformers engine keeps the contract."""

from tests.engines.contract import EngineContract


class TestTransformers(EngineContract):
    name = "transformers"
