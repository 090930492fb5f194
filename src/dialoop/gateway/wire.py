"""A lean HTTP/1.1 client for the way to engines: kept connections, back-pressure, abort by closing.

What is different from a general client: the bytes that have come are handed over as they are, all
at once; closing a response that is not whole closes its connection, which is how engines learn that
nobody waits for the answer; nothing is decoded, followed or retried, but for one case: a kept
connection that the engine had closed before it saw the request (RFC 9112, section 9.3.1) is
replaced by a new one, once.
"""

from __future__ import annotations

import asyncio
import ssl as tls
import time
from collections import deque
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

_IDLE_S = 2.0
"""Connections that were idle for longer are not used again: engines close theirs after 5 s."""
_HIGH_BYTES = 256 * 2**10


class WireError(Exception):
    """The connection failed before the response was whole."""


class ConnectError(WireError):
    """Nothing listens there, or not in time."""


class Wire:
    """Connections to one server.

    Args:
        url: scheme, host, port and the path that requests' own paths are put behind.
        headers: sent with every request.
        connect_s: longest time for a new connection.
    """

    def __init__(
        self, url: str, headers: tuple[tuple[str, str], ...] = (), connect_s: float = 2.0
    ) -> None:
        parts = urlsplit(url)
        self._ssl = tls.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._ssl else 80)
        self._prefix = parts.path.rstrip("/").encode()
        host = f"[{self._host}]" if ":" in self._host else self._host
        own = (("host", f"{host}:{self._port}"), ("accept-encoding", "identity"), *headers)
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in own).encode("latin-1")
        self.connect_s = connect_s
        self._idle: deque[tuple[float, _Connection]] = deque()
        self._is_closed = False
        self._pending: set[_Connection] = set()

    async def get(self, path: bytes) -> Response:
        """Ask for a document; see `post`."""
        return await self._send(b"GET", path, b"", ())

    async def post(
        self, path: bytes, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Response:
        """Send JSON, return when the response's head is there.

        Args:
            path: behind the path of the server's URL.
            body: a JSON document.
            headers: of this request only; names and values without control characters.

        Raises:
            ConnectError: no connection could be made.
            WireError: the connection ended before the head of a response.
        """
        return await self._send(b"POST", path, body, headers)

    def fail_pending(self, error: WireError) -> None:
        """End the requests that have got no head of a response yet."""
        for connection in list(self._pending):
            connection.fail(error)

    def drop_idle(self) -> None:
        """Close the connections that wait for work."""
        while self._idle:
            self._idle.pop()[1].abort()

    def close(self) -> None:
        """Close the connections that wait for work, and the others when theirs is done."""
        self._is_closed = True
        self.drop_idle()

    async def _send(
        self, method: bytes, path: bytes, body: bytes, headers: tuple[tuple[bytes, bytes], ...]
    ) -> Response:
        more = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
        message = b"%b %b%b HTTP/1.1\r\n%b%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (  # noqa: E501
            method, self._prefix, path, self._headers, more, len(body), body,
        )  # fmt: skip
        kept = self._kept()
        if kept:
            try:
                return await self._ask(kept, message)
            except WireError:
                if not kept.is_unseen:
                    raise
        return await self._ask(await self._connect(), message)

    async def _ask(self, connection: _Connection, message: bytes) -> Response:
        self._pending.add(connection)
        try:
            return await connection.ask(message)
        finally:
            self._pending.discard(connection)

    def _kept(self) -> _Connection | None:
        now = time.monotonic()
        while self._idle:
            since, connection = self._idle.pop()
            if connection.is_open and now - since < _IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._keep),
                    self._host,
                    self._port,
                    ssl=self._ssl,
                )
        except TimeoutError as error:
            raise ConnectError(f"no connection within {self.connect_s:g} s") from error
        except OSError as error:
            raise ConnectError(str(error) or type(error).__name__) from error
        return connection

    def _keep(self, connection: _Connection) -> None:
        now = time.monotonic()
        while self._idle and now - self._idle[0][0] >= _IDLE_S:
            self._idle.popleft()[1].abort()
        if self._is_closed:
            connection.abort()
        else:
            self._idle.append((now, connection))


class Response:
    """The response to one request; close it."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: _Connection, status: int, headers: dict[bytes, bytes]) -> None:
        self._connection: _Connection | None = connection
        self.status = status
        self.headers = headers
        """By lower-case name; the last one where a name is there twice."""

    async def next(self) -> bytes:
        """Bytes of the body that have come, at least one; empty at its end.

        Raises:
            WireError: the connection ended before the body did, or `fail` was called.
        """
        if self._connection is None:
            return b""
        return await self._connection.next_bytes()

    async def read(self, limit: int) -> bytes:
        """The rest of the body.

        Raises:
            WireError: it is longer than `limit`, or the connection ended before it did.
        """
        parts: list[bytes] = []
        size = 0
        while data := await self.next():
            parts.append(data)
            size += len(data)
            if size > limit:
                raise WireError(f"the body is larger than {limit} bytes")
        return b"".join(parts)

    def fail(self, error: WireError) -> None:
        """End the response with an error: whoever waits for bytes gets it."""
        if self._connection:
            self._connection.fail(error)

    def close(self) -> None:
        """Give the connection back when the body is whole, else close it."""
        if self._connection:
            self._connection.end()
            self._connection = None


class _Connection(asyncio.Protocol):
    """One connection; it carries one exchange at a time."""

    def __init__(self, keep: Any) -> None:
        self._keep = keep
        self._transport: Any = None
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: WireError | None = None
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._size = 0
        self._has_head = self._is_whole = self._is_paused = self._is_busy = False
        self._num_bytes = 0
        self._can_stay = False
        self.is_open = False

    @property
    def is_unseen(self) -> bool:
        """Whether the last request got not a byte of response."""
        return self._num_bytes == 0 and isinstance(self._error, _ClosedError)

    async def ask(self, message: bytes) -> Response:
        """Send a request and wait for the head of its response."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._chunks, self._size, self._num_bytes = {}, [], 0, 0
        self._has_head = self._is_whole = self._can_stay = False
        self._is_busy = True
        try:
            if self._error:
                raise self._error
            self._transport.write(message)
            while not self._has_head:
                await self._wait()
        except BaseException:
            self.abort()
            raise
        return Response(self, self._status, self._headers)

    async def next_bytes(self) -> bytes:
        """What `Response.next` gives."""
        while not self._chunks:
            if self._is_whole:
                return b""
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._drop_chunks()
        return data

    def fail(self, error: WireError) -> None:
        """End the exchange."""
        if not self._is_whole:
            self._error = self._error or error
            self._wake()
            self.abort()

    def end(self) -> None:
        """Keep the connection for the next request, if this one's response is whole."""
        if self._is_whole and self.is_open and self._can_stay:
            self._is_busy = False
            self._drop_chunks()
            self._keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self.is_open = False
        if self._transport:
            self._transport.abort()

    def _drop_chunks(self) -> None:
        self._chunks, self._size = [], 0
        if self._is_paused and self.is_open:
            self._is_paused = False
            self._transport.resume_reading()

    async def _wait(self) -> None:
        if self._error:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error and not self._chunks and not self._is_whole:
            raise self._error

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """What asyncio calls."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """What asyncio calls."""
        self.is_open = False
        self._parser = None  # it refers back
        if not self._error:
            if self._has_head and not self._is_whole and exc is None and self._ends_by_closing():
                self._is_whole = True
            else:
                self._error = _ClosedError(str(exc) if exc else "the engine closed the connection")
        self._wake()

    def eof_received(self) -> None:
        """What asyncio calls."""
        self.is_open = False

    def data_received(self, data: bytes) -> None:
        """What asyncio calls."""
        if not self._is_busy:  # nobody asked
            self.abort()
            return
        self._num_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(WireError(f"the engine sent no HTTP ({error})"))
            self.abort()
        self._wake()

    def on_message_begin(self) -> None:
        """What the parser calls."""
        if self._is_whole:
            raise WireError("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """What the parser calls."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """What the parser calls."""
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._has_head = True
        else:  # not the response yet
            self._headers = {}

    def on_body(self, body: bytes) -> None:
        """What the parser calls."""
        self._chunks.append(body)
        self._size += len(body)
        if self._size > _HIGH_BYTES and not self._is_paused:
            self._is_paused = True
            with suppress(RuntimeError):  # it is closing
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """What the parser calls."""
        self._is_whole = self._has_head
        self._can_stay = self._parser.should_keep_alive()  # only known while it is called

    def _ends_by_closing(self) -> bool:
        return b"content-length" not in self._headers and b"transfer-encoding" not in self._headers


class _ClosedError(WireError):
    """The other side closed."""
