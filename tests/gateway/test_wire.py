"""The client of engines, against servers that send what they want."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import closing

import pytest
from tests.gateway.engine import request_of, response, serving

from dialoop.gateway.wire import ConnectError, Wire, WireError, _Connection

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def always(raw: bytes, *, closes: bool = False):
    """A script that answers every request with the same bytes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(raw)
            if closes:
                return

    return script


async def got(raw: bytes, *, closes: bool = False) -> tuple[int, bytes]:
    """Status and body of one exchange."""
    async with serving(always(raw, closes=closes)) as url:
        with closing(await Wire(url).post(b"/x", b"{}")) as found:
            return found.status, await found.read(2**20)


@pytest.mark.parametrize(
    ("raw", "closes"),
    [
        (response(b"whole"), False),
        (CHUNKED + b"2\r\nwh\r\n3\r\nole\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\nwhole", True),
        (b"HTTP/1.0 200 OK\r\n\r\nwhole", True),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + response(b"whole"), False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"whole"), False),
    ],
    ids=["length", "chunked", "until_closed", "http_1_0", "early_hints", "continue"],
)
async def test_bodies_of_every_form_are_read(raw: bytes, *, closes: bool):
    assert await got(raw, closes=closes) == (200, b"whole")


async def test_headers_before_the_response_are_not_its_own():
    raw = b"HTTP/1.1 103 Early Hints\r\nretry-after: 9\r\n\r\n" + response(b"", x_y="1")
    async with serving(always(raw)) as url:
        with closing(await Wire(url).get(b"/x")) as found:
            assert found.headers == {b"content-length": b"0", b"x-y": b"1"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nwhol", "closed the connection"),
        (CHUNKED + b"5\r\nwhole\r\n", "closed the connection"),
        (CHUNKED + b"zz\r\nwhole\r\n", "no HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "closed the connection"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "no HTTP"),
    ],
)
async def test_what_is_not_a_whole_response_is_an_error(raw: bytes, said: str):
    with pytest.raises(WireError, match=said):
        await got(raw, closes=True)


async def test_a_connection_is_used_again():
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await always(response(b"ok"))(reader, writer)

    async with serving(script) as url:
        wire = Wire(url)
        for _ in range(5):
            with closing(await wire.post(b"/x", b"{}")) as found:
                assert await found.read(9) == b"ok"
        assert connections == 1
        wire.close()


async def test_a_connection_that_the_engine_closed_is_replaced_once():
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))
        writer.write(response(b"ok"))  # keep-alive, it says, and closes
        await asyncio.sleep(0.01)
        await reader.read(0)

    async with serving(script) as url:
        wire = Wire(url)
        for _ in range(3):
            with closing(await wire.post(b"/x", b"{}")) as found:
                assert await found.read(9) == b"ok"
            await asyncio.sleep(0)
        assert len(requests) == 3


async def test_an_engine_that_closes_new_connections_is_asked_once():
    asked = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await request_of(reader)
        asked += 1

    async with serving(script) as url:
        with pytest.raises(WireError):
            await Wire(url).post(b"/x", b"{}")
        assert asked == 1


@pytest.mark.parametrize(
    "raw",
    [
        response(b"ok") + b"HTTP/1.1 500 X\r\ncontent-length: 3\r\n\r\nbad",
        response(b"ok") + b"garbage",
        response(b"ok", connection="close"),
    ],
)
async def test_a_connection_with_more_than_the_response_is_not_used_again(raw: bytes):
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await always(raw)(reader, writer)

    async with serving(script) as url:
        wire = Wire(url)
        for _ in range(3):
            with closing(await wire.post(b"/x", b"{}")) as found:
                assert (found.status, await found.read(99)) == (200, b"ok")
        assert connections == 3


async def test_a_body_that_is_too_large_is_an_error():
    async with serving(always(response(b"x" * 100_000))) as url:
        with (
            closing(await Wire(url).post(b"/x", b"{}")) as found,
            pytest.raises(WireError, match="larger than 99999 bytes"),
        ):
            await found.read(99_999)


async def test_a_response_that_is_not_read_on_stops_the_engine_and_its_connection_stays_good():
    size = 32 * 2**20
    sent = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for _ in range(size // 2**16):
                writer.write(b"x" * 2**16)
                await writer.drain()
            sent.set()

    async with serving(script) as url:
        wire = Wire(url)
        found = await wire.post(b"/x", b"{}")
        await asyncio.sleep(0.2)
        assert not sent.is_set()
        assert found._connection
        assert found._connection._size < 2**20
        assert len(await found.read(size)) == size
        await sent.wait()
        found.close()
        with closing(await wire.post(b"/x", b"{}")) as again:  # the same connection
            assert len(await again.read(size)) == size


async def test_a_connection_that_was_given_back_unread_is_read_again():
    body = b"x" * 2**19  # more than is read ahead, so that reading was paused

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(response(body))

    async with serving(script) as url, asyncio.timeout(5):
        wire = Wire(url)
        for _ in range(3):
            found = await wire.post(b"/x", b"{}")
            await asyncio.sleep(0.05)
            connection = found._connection
            assert connection
            while not connection._is_whole:
                await found.next()
                await asyncio.sleep(0.01)
            connection._is_paused = True
            connection._transport.pause_reading()
            found.close()
        with closing(await wire.post(b"/x", b"{}")) as last:
            assert await last.read(2**20) == body


async def test_closing_what_is_not_whole_closes_the_connection():
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(CHUNKED + b"1\r\nx\r\n")
        assert await reader.read() == b""
        closed.set()

    async with serving(script) as url:
        found = await Wire(url).post(b"/x", b"{}")
        assert await found.next() == b"x"
        found.close()
        async with asyncio.timeout(0.5):
            await closed.wait()


async def test_a_request_that_is_cancelled_closes_its_connection():
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        await reader.read()
        closed.set()

    async with serving(script) as url:
        wire = Wire(url)
        task = asyncio.create_task(wire.post(b"/x", b"{}"))
        await asyncio.sleep(0.05)
        task.cancel()
        async with asyncio.timeout(0.5):
            await closed.wait()
        assert not wire._pending


async def test_pending_requests_can_be_failed():
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(script) as url:
        wire = Wire(url)
        tasks = [asyncio.create_task(wire.post(b"/x", b"{}")) for _ in range(3)]
        await asyncio.sleep(0.05)
        wire.fail_pending(WireError("found dead"))
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(found, WireError)
            assert str(found) == "found dead"


@pytest.mark.parametrize("head", [CHUNKED, b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_response_that_was_failed_does_not_end_well(head: bytes):
    async with serving(always(head + b"1\r\nx\r\n")) as url:
        with closing(await Wire(url).post(b"/x", b"{}")) as found:
            await asyncio.sleep(0.05)  # some of it is there
            found.fail(WireError("late"))
            await asyncio.sleep(0.05)
            with pytest.raises(WireError, match="late"):
                await found.read(99)


async def test_nobody_there_is_told_apart_from_a_failure():
    async with serving(always(b"")) as url:
        pass
    with pytest.raises(ConnectError):
        await Wire(url).post(b"/x", b"{}")


async def test_a_host_that_does_not_answer_is_given_up():
    with socket.socket() as full:  # nobody accepts, and no more may wait to be accepted
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with pytest.raises(ConnectError, match=r"within 0\.2 s"):
            await Wire(f"http://127.0.0.1:{full.getsockname()[1]}/v1", (), 0.2).get(b"/x")
        for one in waiting:
            one.close()


async def test_the_request_says_where_it_goes():
    found: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.append(await request_of(reader))
        writer.write(response(b""))

    async with serving(script) as url:
        wire = Wire(url + "/", (("authorization", "Bearer s"),))
        (await wire.post(b"/x", b'{"a":1}', ((b"x-request-id", b"7"),))).close()
    head, _, body = found[0].partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/x HTTP/1.1"
    assert {b"authorization: Bearer s", b"x-request-id: 7", b"content-length: 7"} <= {*lines}


async def test_a_client_that_is_closed_keeps_no_connection():
    async with serving(always(response(b"ok"))) as url:
        wire = Wire(url)
        found = await wire.post(b"/x", b"{}")
        wire.close()
        assert await found.read(9) == b"ok"
        found.close()
        assert not wire._idle


async def test_connections_leave_no_cycles_behind():
    async with serving(always(response(b"ok", connection="close"))) as url:
        wire = Wire(url)
        for _ in range(3):
            with closing(await wire.post(b"/x", b"{}")) as found:
                await found.read(9)
        await asyncio.sleep(0.05)
        gc.collect()
        others = {id(one) for one in gc.get_objects() if type(one) is _Connection}
        gc.disable()
        for _ in range(20):
            with closing(await wire.post(b"/x", b"{}")) as last:
                await last.read(9)
            del last
        await asyncio.sleep(0.05)
        left = [one for one in gc.get_objects() if type(one) is _Connection]
        gc.enable()
        assert not [one for one in left if id(one) not in others]
