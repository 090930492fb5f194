"""Failures of the database in words: what a person can mend, and what passes by itself."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy import exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from dialoop.core.errors import DialoopError, MachineError, UpstreamError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dialoop.gateway.store.address import Address

_AGAIN = "see its log; the gateway asks it again by itself"
_SQLITE_MACHINE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
_SQLITE_FOREIGN = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
_PASSING = ("08", "25006", "40", "53", "57")
"""SQLSTATE classes of failures that pass: connection, standby, deadlock, room, operator."""
_ADDRESS = {
    "28": "give the user and password that the server wants",
    "3D": "make it with `createdb`, or correct the address",
    "42501": "grant the user the right to make tables there",
}
"""SQLSTATE classes of failures that an address can mend, and how."""


def is_slow(error: BaseException) -> bool:
    """Whether a call failed because the answer took too long."""
    for cause in _causes(error):
        if isinstance(cause, TimeoutError | exc.TimeoutError) or _sqlstate(cause) == "57014":
            return True
        if _sqlite_name(cause).startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return True
    return False


def worded(error: Exception, address: Address, *, opening: bool) -> DialoopError | None:
    """An error of ours for a failure of the database's; None where the failure is a bug of ours.

    Args:
        error: what the call raised; not a slow one (`is_slow`).
        address: where the database is.
        opening: nothing has worked yet, so that the address may be at fault.
    """
    for cause in _causes(error):
        found = (
            cause
            if isinstance(cause, DialoopError)
            else _of_sqlite(cause, address)
            or _of_postgresql(cause, address, opening=opening)
            or _of_network(cause, address)
        )
        if found is not None:
            return found
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return UpstreamError(f"{address.shown} closed the connection", hint=_AGAIN)
    return None


def _of_sqlite(cause: BaseException, address: Address) -> DialoopError | None:
    name = _sqlite_name(cause)
    if name.startswith(_SQLITE_MACHINE):
        return MachineError(
            f"SQLite failed on {address.shown}: {cause}",
            hint="see that its disk has room and that you may write the file and its folder",
        )
    if name.startswith(_SQLITE_FOREIGN):
        return MachineError(
            f"{address.shown} is no whole SQLite database: {cause}",
            hint="put back a copy of it, or name another file",
        )
    return None


def _of_postgresql(cause: BaseException, address: Address, *, opening: bool) -> DialoopError | None:
    state = _sqlstate(cause)
    said = cause.__cause__ or cause  # in the server's words, without the names of classes
    for begin, hint in _ADDRESS.items():
        if state.startswith(begin):
            if opening:
                return UserError(f"{address.shown} refused: {said}", hint=hint)
            return UpstreamError(f"{address.shown} refused: {said}", hint=hint)
    if state.startswith(_PASSING):
        return UpstreamError(f"{address.shown} failed: {said}", hint=_AGAIN)
    return None


def _of_network(cause: BaseException, address: Address) -> DialoopError | None:
    if not isinstance(cause, OSError):
        return None
    reason = (cause.strerror or str(cause)).lower()
    return UpstreamError(
        f"{address.shown} cannot be reached: {reason}",
        hint="start the server, or correct the address",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what SQLAlchemy has wrapped, and what the driver was told, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = (seen.orig if isinstance(seen, exc.StatementError) else None) or seen.__cause__


def _sqlite_name(cause: BaseException) -> str:
    # The module's own errors, as opposed to the library's, have no such attribute.
    return vars(cause).get("sqlite_errorname", "") if isinstance(cause, sqlite3.Error) else ""


def _sqlstate(cause: BaseException) -> str:
    return cause.sqlstate or "" if isinstance(cause, AsyncAdapt_asyncpg_dbapi.Error) else ""
