"""The gateway's database: SQLite or PostgreSQL by URL, and a bound of ours on every call.

A connection is held for one statement or one short transaction. A call that takes longer than the
bound fails and its connection is cut off, whatever state the server is in; after three such calls
in a row the next ones fail at once, and one a second finds out whether the server is back.
Reads commit by themselves; writes are transactions. SQLite has one writer at a time in a process
(a lock of ours) and among processes (`BEGIN IMMEDIATE`), so that no read ever has to become one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dialoop.core.errors import DialoopError, MachineError, UpstreamError, UserError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy import Executable, RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import QueuePool

    from dialoop.gateway.store.address import Address, Kind

log = logging.getLogger(__name__)

T = TypeVar("T")

_CREATION_S = 30.0
"""Making the tables, once, may take so long."""
_CUT_AGAIN_S = 0.05
_NUM_SLOW = 3
_PAUSE_S = 1.0


class Breaker:
    """Whether a database that did not answer is asked again.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_slow = 0
        self._closed_at = 0.0

    def admits(self) -> bool:
        """Whether this call may go; after a pause, one call a second may."""
        if self._num_slow < _NUM_SLOW:
            return True
        if self._clock() < self._closed_at:
            return False
        self._closed_at = self._clock() + _PAUSE_S
        return True

    def answered(self) -> None:
        """The database has answered, if only with an error."""
        self._num_slow = 0

    def timed_out(self) -> None:
        """It has not answered in time."""
        self._num_slow += 1
        self._closed_at = self._clock() + _PAUSE_S


class Database:
    """Calls to one database from one event loop; made by `open`, ended by `close`."""

    def __init__(self, address: Address, engine: AsyncEngine, timeout_s: float) -> None:
        self._address = address
        self._engine = engine
        # For a single statement PostgreSQL needs no BEGIN and COMMIT; SQLite has none anyhow.
        commits_itself = address.kind == "postgresql"
        self._reading = (
            engine.execution_options(isolation_level="AUTOCOMMIT") if commits_itself else engine
        )
        self._timeout_s = timeout_s
        self._writer = asyncio.Lock() if address.kind == "sqlite" else nullcontext()
        self._breaker = Breaker()
        self._leaving: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str, timeout_s: float = 2.0) -> Database:
        """Connect, and make the tables where there are none.

        Args:
            url: `sqlite`, `sqlite:////path/to/file.db` or `postgresql://user@host/name`.
            timeout_s: longest wait for any call, in seconds.

        Raises:
            UserError: the address is wrong, or a newer dialoop made the tables.
            MachineError: a package is missing, or the file cannot be written.
            UpstreamError: the server cannot be reached or does not answer.
        """
        _require("sqlalchemy", "gateway")
        _require("aiosqlite", "gateway")
        from dialoop.gateway.store.address import make_engine, read_url

        address = read_url(url)
        if address.kind == "postgresql":
            _require("asyncpg", "postgres")
        database = cls(address, make_engine(address, timeout_s), timeout_s)
        try:
            await database._prepare()
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def kind(self) -> Kind:
        """Which dialect statements are for."""
        return self._address.kind

    @property
    def num_connections(self) -> int:
        """Connections that calls hold now, those included that are being cut off."""
        return cast("QueuePool", self._engine.sync_engine.pool).checkedout()

    async def close(self) -> None:
        """Close all connections; bounded like every call."""
        closing = asyncio.create_task(self._engine.dispose())
        await asyncio.wait({closing, *self._leaving}, timeout=self._timeout_s)
        await _cut_off(closing)

    async def rows(self, statement: Executable) -> Sequence[RowMapping]:
        """What one reading statement finds.

        Raises:
            UpstreamError: no answer within the bound, or the server failed.
        """

        async def work(connection: AsyncConnection) -> Sequence[RowMapping]:
            return (await connection.execute(statement)).mappings().all()

        return await self.read(work)

    async def row(self, statement: Executable) -> RowMapping | None:
        """The first row that one reading statement finds; raises as `rows` does."""
        found = await self.rows(statement)
        return found[0] if found else None

    async def change(
        self, statement: Executable, parameters: Sequence[Mapping[str, Any]] | None = None
    ) -> int:
        """Run one writing statement, for each set of parameters; raises as `rows` does.

        Returns:
            How many rows it changed; of no meaning for several sets of parameters.
        """

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(statement, parameters)).rowcount

        return await self.write(work)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run reading statements on one connection, each for itself; raises as `rows` does."""
        return await self._bounded(work, self._timeout_s, writes=False)

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run statements as one transaction; raises as `rows` does.

        After a time-out the transaction has not taken place, unless the time ran out while the
        server was committing it.
        """
        return await self._bounded(work, self._timeout_s, writes=True)

    async def _prepare(self) -> None:
        from dialoop.gateway.store import tables

        async def version(connection: AsyncConnection) -> int | None:
            if self.kind == "sqlite":
                await _write_ahead(connection, self._address.shown)
            return await tables.stored_version(connection)

        found = await self._bounded(version, self._timeout_s, writes=False, opening=True)
        if found is None:
            await self._bounded(tables.create, _CREATION_S, writes=True, opening=True)
            found = tables.SCHEMA_VERSION
        if found != tables.SCHEMA_VERSION:
            raise UserError(
                f"{self._address.shown} has tables of version {found};"
                f" this dialoop knows version {tables.SCHEMA_VERSION}",
                hint="use the dialoop that made them, or a newer one",
            )

    async def _bounded(
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        bound_s: float,
        *,
        writes: bool,
        opening: bool = False,
    ) -> T:
        if not self._breaker.admits():
            raise self._too_slow(f", {_NUM_SLOW} times in a row or more")
        call = asyncio.create_task(self._call(work, writes=writes))
        try:
            await asyncio.wait({call}, timeout=bound_s)
        finally:  # also when whoever waits is cancelled
            if not call.done():
                self._abandon(call)
        if call.cancelled() or not call.done():
            self._breaker.timed_out()
            raise self._too_slow()
        return self._outcome(call, opening=opening)

    async def _call(self, work: Callable[[AsyncConnection], Awaitable[T]], *, writes: bool) -> T:
        if not writes:
            async with self._reading.connect() as connection:
                return await work(connection)
        async with self._writer, self._engine.connect() as connection:
            if self.kind == "sqlite":
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            result = await work(connection)
            await connection.commit()
            return result

    def _outcome(self, call: asyncio.Task[T], *, opening: bool) -> T:
        from dialoop.gateway.store import faults

        error = call.exception()
        if error is not None and faults.is_slow(error):
            self._breaker.timed_out()
            raise self._too_slow() from error
        self._breaker.answered()
        if isinstance(error, Exception) and not isinstance(error, DialoopError):
            fault = faults.worded(error, self._address, opening=opening)
            if fault is not None:
                raise fault from error
        return call.result()

    def _abandon(self, call: asyncio.Task[T]) -> None:
        """Let go of a call without waiting for the server."""
        leaving = asyncio.create_task(_cut_off(call))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def _too_slow(self, detail: str = "") -> UpstreamError:
        return UpstreamError(
            f"the database has not answered within {self._timeout_s:g} s{detail}",
            hint=f"see that {self._address.shown} is up and not overloaded",
        )


async def _cut_off(call: asyncio.Task[Any]) -> None:
    """Cancel until it ends: on its way out a call may wait for the server again."""
    while not call.done():
        call.cancel()
        await asyncio.wait({call}, timeout=_CUT_AGAIN_S)
    if not call.cancelled() and (error := call.exception()) is not None:
        log.debug("a call that was given up ended so: %r", error)


async def _write_ahead(connection: AsyncConnection, shown: str) -> None:
    """Let readers and the writer of SQLite go on beside one another."""
    # Of several processes that open a new file at once, one gets it and the others are told so.
    from sqlalchemy.exc import OperationalError

    while True:
        try:
            mode = (await connection.exec_driver_sql("PRAGMA journal_mode = WAL")).scalar_one()
            break
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            await asyncio.sleep(0.02)
    if mode != "wal":
        raise MachineError(
            f"SQLite can have no write-ahead log on {shown}", hint="put it on a local disk"
        )


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise MachineError(
            f"the gateway's database needs the package `{package}`",
            hint=f"pip install 'dialoop[{extra}]'",
        )
