"""The OpenVINO engine keeps the contract."""

import pytest
from tests.engines.contract import EngineContract

pytest.importorskip("openvino_genai")


class TestOpenVino(EngineContract):
    name = "openvino"
