"""One connection to Redis that costs a request nothing when Redis is gone, and little when frozen.

Calls share one connection and are answered in order. Requests never connect: where there is no
connection a call fails at once. When the oldest call has waited for `timeout_s`, or the connection
breaks, every call on it fails and a task tries to connect: at once, then once a second. Time is
taken in ticks of the running loop, so that a loop that was busy does not take Redis for frozen.

The parser is hiredis'. redis-py's own client takes 33 to 55 us of CPU for a call with a time limit,
this one 5 to 9 (`benchmarks/gateway_counters.py`), and a request makes several calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from dialoop.core.errors import MachineError, UpstreamError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    import hiredis

    Word = str | bytes | int

log = logging.getLogger(__name__)
_TICKS = 5
"""A call fails between the last two of them."""
_CONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is, from its URL."""

    host: str
    port: int
    path: str | None
    """Of a Unix socket."""
    database: int
    user: str | None
    password: str | None
    is_tls: bool

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Read `redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]` or `unix://PATH`.

        Raises:
            UserError: it is neither.
        """
        parts = urlsplit(url)
        is_unix = parts.scheme == "unix"
        name = "" if is_unix else parts.path.strip("/")
        try:
            port = parts.port or 6379
            database = int(name or 0)
            is_known = parts.scheme in ("redis", "rediss", "unix") and not parts.query
        except ValueError:
            port = database = 0
            is_known = False
        if not is_known or (is_unix and not parts.path):
            raise UserError(
                f"{_shown(parts.scheme, parts.hostname)} is not the address of a Redis",
                hint="write redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// or unix://",
            )
        return cls(
            parts.hostname or "localhost",
            port,
            parts.path if is_unix else None,
            database,
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            parts.scheme == "rediss",
        )

    def __str__(self) -> str:
        """Without the password."""
        return self.path or f"{self.host}:{self.port}"


class RedisClient:
    """A Redis that may be away.

    Args:
        url: see `Address.from_url`.
        timeout_s: how long a call may take.
        probe_s: between attempts to connect.

    Raises:
        MachineError: hiredis is missing.
        UserError: the URL cannot be read.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.05, probe_s: float = 1.0) -> None:
        try:
            import hiredis
        except ImportError as error:
            raise MachineError(
                "Redis needs the package hiredis", hint="run `pip install 'dialoop[redis]'`"
            ) from error
        self.address = Address.from_url(url)
        self._pack = cast("Callable[[tuple[Word, ...]], bytes]", cast("Any", hiredis).pack_command)
        self._timeout_s, self._probe_s = timeout_s, probe_s
        self._scripts: list[str] = []
        self._wire: _Wire | None = None
        self._mending: asyncio.Task[None] | None = None
        self._is_closed = False
        self.num_outages = 0
        """How often a connection was lost."""

    @property
    def is_up(self) -> bool:
        """Whether calls are sent."""
        return self._wire is not None

    def add_script(self, text: str) -> str:
        """The digest by which EVALSHA runs a script; to be called before `open`."""
        self._scripts.append(text)
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def open(self) -> None:
        """Connect; a Redis that is away is reported in the log and tried again."""
        try:
            self._wire = await self._connect()
        except UpstreamError as error:
            log.warning("%s", Exception.__str__(error))
            self._mending = asyncio.create_task(self._mend(self._probe_s))

    async def call(self, *words: Word) -> Any:
        """Send a command and await its reply.

        Raises:
            UpstreamError: there is no connection, or it broke, or no reply came in time (whether
                the command was obeyed is then not known), or Redis refused it.
        """
        wire = self._wire
        if wire is None:
            raise UpstreamError(f"Redis at {self.address} is away")
        return await wire.call(self._pack(words))

    def post(self, *words: Word) -> None:
        """Send a command whose reply nobody needs; without effect while Redis is away."""
        if self._wire is not None:
            self._wire.post(self._pack(words))

    async def close(self) -> None:
        """Let go of the connection."""
        self._is_closed = True
        if self._mending:
            self._mending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._mending
        if self._wire:
            self._wire.drop("it was closed")

    def _lost(self, wire: _Wire, why: str) -> None:
        if self._is_closed or wire is not self._wire:
            return
        self._wire = None
        self.num_outages += 1
        log.warning("lost Redis at %s: %s", self.address, why)
        self._mending = asyncio.create_task(self._mend(0.0))

    async def _mend(self, wait_s: float) -> None:
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._probe_s
            try:
                self._wire = await self._connect()
            except UpstreamError as error:
                log.debug("%s", Exception.__str__(error))
                continue
            log.info("Redis at %s answers", self.address)
            return

    async def _connect(self) -> _Wire:
        loop, to = asyncio.get_running_loop(), self.address
        wire: _Wire | None = None
        is_ready = False
        try:
            async with asyncio.timeout(_CONNECT_S):
                if to.path:
                    _, wire = await loop.create_unix_connection(self._new_wire, to.path)
                else:
                    tls = ssl.create_default_context() if to.is_tls else None
                    _, wire = await loop.create_connection(
                        self._new_wire, to.host, to.port, ssl=tls
                    )
                await self._greet(wire)
                is_ready = True
                return wire
        except (OSError, TimeoutError, UpstreamError) as error:
            reason = "no answer" if isinstance(error, TimeoutError) else Exception.__str__(error)
            raise UpstreamError(
                f"cannot reach Redis at {to}: {reason}", hint="is it running, and the URL right?"
            ) from error
        finally:
            if wire and not is_ready:
                wire.drop("it did not greet back")

    async def _greet(self, wire: _Wire) -> None:
        to = self.address
        if to.password is not None:
            await wire.call(self._pack(("AUTH", *((to.user,) if to.user else ()), to.password)))
        if to.database:
            await wire.call(self._pack(("SELECT", to.database)))
        for script in self._scripts:
            await wire.call(self._pack(("SCRIPT", "LOAD", script)))
        await wire.call(self._pack(("PING",)))

    def _new_wire(self) -> _Wire:
        return _Wire(self._timeout_s / _TICKS, self._lost)


class _Wire(asyncio.Protocol):
    """A connection: calls and their replies in the same order, until the first failure."""

    def __init__(self, tick_s: float, on_lost: Callable[[_Wire, str], None]) -> None:
        import hiredis

        self._reader: hiredis.Reader = hiredis.Reader()
        self._error: type[Exception] = hiredis.ReplyError
        self._broken: type[Exception] = hiredis.ProtocolError
        self._tick_s, self._on_lost = tick_s, on_lost
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[asyncio.Future[Any] | None, int]] = deque()
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._refusals: set[str] = set()

    async def call(self, packed: bytes) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._send(packed, future)
        return await future

    def post(self, packed: bytes) -> None:
        if self._transport is not None:
            self._send(packed, None)

    def _send(self, packed: bytes, future: asyncio.Future[Any] | None) -> None:
        if self._transport is None:
            raise UpstreamError("the connection to Redis is closed")
        self._waiting.append((future, self._ticks))
        if self._timer is None:
            self._timer = self._loop.call_later(self._tick_s, self._tick)
        self._transport.write(packed)

    def _tick(self) -> None:
        self._ticks += 1
        self._timer = None
        if not self._waiting:
            return
        if self._ticks - self._waiting[0][1] >= _TICKS:
            self.drop(f"no reply for {self._tick_s * _TICKS * 1000:.0f} ms")
            return
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                future, _ = self._waiting.popleft()
                if isinstance(reply, self._error):
                    self._refused(str(reply), future)
                elif future is not None and not future.done():
                    future.set_result(reply)
        except (self._broken, IndexError) as error:
            self.drop(f"its replies cannot be read ({error})")

    def _refused(self, text: str, future: asyncio.Future[Any] | None) -> None:
        if text.startswith("NOSCRIPT"):
            self.drop("its scripts were flushed")  # they are loaded with the next connection
        kind = text.split(" ", 1)[0]
        if kind not in self._refusals:
            self._refusals.add(kind)
            log.warning("Redis refused a command: %s", text)
        if future is not None and not future.done():
            future.set_exception(UpstreamError(f"Redis refused a command: {text}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(str(exc) if exc else "it closed the connection")

    def drop(self, why: str) -> None:
        """Close, and fail every call that waits."""
        if self._transport is None:
            return
        self._transport.abort()
        self._transport = None
        if self._timer:
            self._timer.cancel()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if future is not None and not future.done():
                future.set_exception(UpstreamError(f"lost Redis: {why}"))
        self._on_lost(self, why)


def _shown(scheme: str, host: str | None) -> str:
    """An address without what may be a password."""
    return f"{scheme}://...{host or ''}"
