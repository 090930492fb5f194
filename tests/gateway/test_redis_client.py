"""The one connection: replies go to who asked, and a Redis that is away costs nothing."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tests.gateway.redis_server import RedisServer, until_up

from dialoop.core.errors import UpstreamError, UserError
from dialoop.gateway.redis_client import Address, RedisClient


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    yield server
    server.kill()


def test_addresses_are_read() -> None:
    assert Address.from_url("redis://cache") == Address("cache", 6379, None, 0, None, None, False)
    assert Address.from_url("rediss://me:p%40ss@h:1/2") == Address(
        "h", 1, None, 2, "me", "p@ss", True
    )
    assert Address.from_url("redis://:word@h").password == "word"
    assert Address.from_url("unix:///run/redis.sock").path == "/run/redis.sock"
    assert str(Address.from_url("redis://:word@h:7")) == "h:7"


@pytest.mark.parametrize("url", ["http://h", "h:6379", "redis://h/x", "redis://h:x", "unix://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is not the address of a Redis") as caught:
        Address.from_url(url)
    assert "write redis://" in str(caught.value)


def test_the_error_does_not_show_the_password() -> None:
    with pytest.raises(UserError) as caught:
        Address.from_url("redis://:secret@h/x")
    assert "secret" not in str(caught.value)


def test_replies_reach_who_asked_also_after_calls_were_given_up(redis_server: RedisServer) -> None:
    async def main() -> None:
        client = RedisClient(redis_server.url, probe_s=0.1)
        await client.open()

        async def echo(number: int) -> None:
            assert await client.call("ECHO", f"n{number}") == f"n{number}".encode()

        await asyncio.gather(*map(echo, range(500)))
        given_up = [asyncio.ensure_future(client.call("ECHO", "gone")) for _ in range(50)]
        await asyncio.sleep(0)
        for one in given_up:
            one.cancel()
        await asyncio.gather(*map(echo, range(500)))
        redis_server.freeze()
        lost = await asyncio.gather(
            *(client.call("ECHO", "late") for _ in range(50)), return_exceptions=True
        )
        assert all(isinstance(one, UpstreamError) for one in lost)
        redis_server.thaw()
        await until_up(client)
        await asyncio.gather(*map(echo, range(500)))
        await client.close()

    asyncio.run(main())


def test_a_busy_loop_does_not_take_redis_for_frozen(redis_server: RedisServer) -> None:
    async def main() -> None:
        client = RedisClient(redis_server.url)
        await client.open()
        for _ in range(5):
            asked = asyncio.ensure_future(client.call("PING"))
            await asyncio.sleep(0)
            time.sleep(0.15)  # noqa: ASYNC251
            assert await asked == b"PONG"
        assert client.num_outages == 0
        await client.close()

    asyncio.run(main())


def test_a_refused_command_is_an_error_of_that_command_alone(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        client = RedisClient(redis_server.url)
        await client.open()
        for _ in range(3):
            with pytest.raises(UpstreamError, match="Redis refused a command: ERR unknown command"):
                await client.call("NOSUCH")
        client.post("NOSUCH")
        assert await client.call("PING") == b"PONG"
        assert client.num_outages == 0
        await client.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert caplog.text.count("refused a command") == 1, "told once, not for every request"


def test_flushed_scripts_are_loaded_again(redis_server: RedisServer) -> None:
    async def main() -> None:
        client = RedisClient(redis_server.url, probe_s=0.1)
        digest = client.add_script("return 7")
        await client.open()
        assert await client.call("EVALSHA", digest, 0) == 7
        await client.call("SCRIPT", "FLUSH")
        with pytest.raises(UpstreamError, match="NOSCRIPT"):
            await client.call("EVALSHA", digest, 0)
        await until_up(client)
        assert await client.call("EVALSHA", digest, 0) == 7
        await client.close()

    asyncio.run(main())


def test_passwords_and_databases_are_used(redis_server: RedisServer) -> None:
    async def main() -> None:
        admin = RedisClient(redis_server.url)
        await admin.open()
        await admin.call("ACL", "SETUSER", "me", "on", ">word", "~*", "+@all")
        at = f"127.0.0.1:{redis_server.port}/3"
        client = RedisClient(f"redis://me:word@{at}")
        await client.open()
        await client.call("SET", "here", "1")
        assert b"db=3" in await client.call("CLIENT", "INFO")
        assert b"user=me" in await client.call("CLIENT", "INFO")
        assert await admin.call("GET", "here") is None
        stranger = RedisClient(f"redis://me:wrong@{at}")
        await stranger.open()
        assert not stranger.is_up
        for one in (admin, client, stranger):
            await one.close()

    asyncio.run(main())


def test_outages_are_told_once_and_no_task_is_left(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        client = RedisClient(redis_server.url, probe_s=0.05)
        await client.open()
        redis_server.freeze()
        try:
            for _ in range(20):
                with pytest.raises(UpstreamError):
                    await client.call("PING")
                client.post("PING")
            await asyncio.sleep(0.3)
        finally:
            redis_server.thaw()
        await client.close()
        assert len(asyncio.all_tasks()) == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert caplog.text.count("lost Redis at") == 1


def test_unix_sockets_and_tls_are_spoken(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if redis is None or openssl is None:
        pytest.skip("redis-server or openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]
    made += ["/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made += ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(made, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [redis, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""]
    words += ["--tls-cert-file", str(folder / "cert"), "--tls-key-file", str(folder / "key")]
    words += ["--tls-auth-clients", "no", "--tls-ca-cert-file", str(folder / "cert")]
    path = Path(f"/tmp/dialoop-{port}.sock")  # the path of a socket is short
    server = subprocess.Popen([*words, "--unixsocket", str(path)], stdout=subprocess.DEVNULL)

    async def is_reached(url: str) -> bool:
        client = RedisClient(url, timeout_s=0.5, probe_s=0.1)
        await client.open()
        is_up = client.is_up and await client.call("PING") == b"PONG"
        await client.close()
        return is_up

    async def main() -> None:
        async with asyncio.timeout(10):
            while not await is_reached(f"unix://{path}"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not await is_reached(f"rediss://localhost:{port}"), "nobody vouches for it"
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert"))
        assert await is_reached(f"rediss://localhost:{port}")
        assert not await is_reached(f"rediss://127.0.0.1:{port}"), "another name"

    try:
        asyncio.run(main())
    finally:
        server.kill()
        server.wait(10)
        path.unlink(missing_ok=True)
