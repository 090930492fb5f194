"""The key ring: what it says of a header, and how it follows changes."""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from tests.gateway.opened import with_database

from dialoop.core.errors import UpstreamError
from dialoop.gateway.keys import Key, KeyLimits, KeyRing, KeySnapshot
from dialoop.gateway.store.keys import Keys
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from dialoop.gateway.database import Database

KEY = Key("key_1", "app", "acme", frozenset({"chat"}), frozenset({"small"}), 1000.0, KeyLimits())


class Source:
    """Keys in a variable, whose owner may be out of order."""

    def __init__(self) -> None:
        self.keys = {b"good": KEY}
        self.revoked: set[bytes] = {b"old"}
        self.number = 1
        self.fault: Exception | None = None
        self.num_snapshots = 0

    async def generation(self) -> int:
        if self.fault:
            raise self.fault
        return self.number

    async def snapshot(self) -> KeySnapshot:
        self.num_snapshots += 1
        return KeySnapshot(
            self.number,
            {sha256(secret).digest(): key for secret, key in self.keys.items()},
            frozenset(sha256(secret).digest() for secret in self.revoked),
        )


def ring(source: Source, now: float = 500.0) -> KeyRing:
    found = KeyRing(source, clock=lambda: now)
    asyncio.run(found.refresh())
    return found


@pytest.mark.parametrize("header", [b"Bearer good", b"bearer good", b"BEARER  good "])
def test_a_good_key_is_found(header: bytes) -> None:
    assert ring(Source()).find(header) is KEY


@pytest.mark.parametrize(
    ("header", "words", "code"),
    [
        (b"", "You didn't provide an API key", None),
        (b"good", "Invalid Authorization header", "invalid_api_key"),
        (b"Basic good", "Invalid Authorization header", "invalid_api_key"),
        (b"Bearer ", "Invalid Authorization header", "invalid_api_key"),
        (b"Bearer goo", "Incorrect API key provided", "invalid_api_key"),
        (b"Bearer \xff\x00", "Incorrect API key provided", "invalid_api_key"),
        (b"Bearer old", "has been revoked", "invalid_api_key"),
    ],
)
def test_other_headers_are_refused(header: bytes, words: str, code: str | None) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        ring(Source()).find(header)
    assert (caught.value.status, caught.value.code) == (401, code)


def test_expiry_is_looked_at_with_each_use() -> None:
    assert ring(Source(), 999.9).find(b"Bearer good") is KEY
    with pytest.raises(ApiError, match="has expired"):
        ring(Source(), 1000.0).find(b"Bearer good")


def test_a_key_allows_its_scopes_and_models_only() -> None:
    KEY.allow("chat")
    KEY.allow("chat", "small")
    with pytest.raises(ApiError, match="Missing scopes: admin") as caught:
        KEY.allow("admin")
    assert caught.value.status == 403
    with pytest.raises(ApiError, match="does not have access to model `large`") as caught:
        KEY.allow("chat", "large")
    assert (caught.value.status, caught.value.param) == (403, "model")
    Key("k", "n", "t", frozenset({"chat"}), None, None, KeyLimits()).allow("chat", "any")


def test_keys_are_read_again_only_when_they_changed() -> None:
    source = Source()
    found = ring(source)
    asyncio.run(found.refresh())
    assert source.num_snapshots == 1
    source.keys, source.number = {b"new": KEY}, 2
    asyncio.run(found.refresh())
    assert found.find(b"Bearer new") is KEY
    with pytest.raises(ApiError, match="Incorrect"):
        found.find(b"Bearer good")


def test_while_the_source_fails_the_last_keys_go_on(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    found = ring(source)
    caplog.set_level(logging.INFO)
    for fault in (UpstreamError("no answer"), RuntimeError("a bug"), UpstreamError("no answer")):
        source.fault = fault
        asyncio.run(found.refresh())
        assert found.find(b"Bearer good") is KEY
    source.fault = None
    asyncio.run(found.refresh())
    asyncio.run(found.refresh())
    assert [record.getMessage() for record in caplog.records] == [
        "keys cannot be refreshed, the last ones go on: no answer",
        "keys are refreshed again",
    ]


def test_a_ring_that_cannot_begin_says_so() -> None:
    class Broken(Source):
        async def snapshot(self) -> KeySnapshot:
            raise UpstreamError("no answer")

    with pytest.raises(UpstreamError):
        asyncio.run(KeyRing(Broken()).start())


def test_a_revocation_reaches_a_running_ring(url: str) -> None:
    async def work(database: Database) -> None:
        keys = Keys(database)
        key, secret = await keys.create("app", "acme", ["chat"])
        header = f"Bearer {secret}".encode()
        running = KeyRing(keys, interval_s=0.05)
        await running.start()
        try:
            assert running.find(header) == key
            await keys.revoke("acme", key.id)
            assert running.find(header) == key  # not before the next look
            await asyncio.sleep(0.3)
            with pytest.raises(ApiError, match="revoked"):
                running.find(header)
            _, other = await keys.create("app", "acme", ["chat"])
            await asyncio.sleep(0.3)
            assert running.find(f"Bearer {other}".encode()).tenant == "acme"
        finally:
            await running.stop()

    with_database(url, work)
