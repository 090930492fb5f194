"""A Redis for all tests of a file."""

import pytest
from tests.gateway.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    yield server
    server.kill()
