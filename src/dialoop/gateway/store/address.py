"""Where the database is: SQLite files and PostgreSQL servers by URL, and engines for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine

from dialoop.core import env
from dialoop.core.errors import UserError
from dialoop.core.files import machine_errors

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Kind = Literal["sqlite", "postgresql"]

_DRIVERS: dict[str, tuple[Kind, str]] = {
    "sqlite": ("sqlite", "sqlite+aiosqlite"),
    "sqlite+aiosqlite": ("sqlite", "sqlite+aiosqlite"),
    "postgres": ("postgresql", "postgresql+asyncpg"),
    "postgresql": ("postgresql", "postgresql+asyncpg"),
    "postgresql+asyncpg": ("postgresql", "postgresql+asyncpg"),
}
_OPTIONS = {"ssl", "sslmode", "host", "port"}
_FORMS = "write `sqlite`, `sqlite:////path/to/file.db` or `postgresql://user:password@host/name`"
_SQLITE_CONNECTIONS = 4
_POSTGRESQL_CONNECTIONS = 10


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is."""

    kind: Kind
    url: URL
    shown: str
    """For messages: without the password."""


def read_url(text: str) -> Address:
    """Read a database's address.

    Args:
        text: `sqlite` for `gateway/gateway.db` under `DIALOOP_HOME`, or a URL.

    Raises:
        UserError: it is no such address; a password in it is not repeated.
    """
    if text == "sqlite":
        return _sqlite(URL.create("sqlite", database=str(env.home() / "gateway" / "gateway.db")))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UserError("the database's address is not a URL", hint=_FORMS) from error
    if url.drivername not in _DRIVERS:
        raise UserError(f"unknown database `{url.drivername}`", hint=_FORMS)
    kind, driver = _DRIVERS[url.drivername]
    return _sqlite(url) if kind == "sqlite" else _postgresql(url.set(drivername=driver))


def _sqlite(url: URL) -> Address:
    if url.database in {None, "", ":memory:"} or url.host or url.query:
        shown = url.render_as_string()
        raise UserError(
            f"`{shown}` names no SQLite file", hint="write `sqlite:////path/to/file.db`"
        )
    path = Path(str(url.database)).expanduser().absolute()
    url = URL.create("sqlite+aiosqlite", database=str(path))
    return Address("sqlite", url, f"the file `{path}`")


def _postgresql(url: URL) -> Address:
    if unknown := sorted(set(url.query) - _OPTIONS):
        raise UserError(
            f"the database's address has the unknown option `{unknown[0]}`",
            hint=f"known options: {', '.join(sorted(_OPTIONS))}",
        )
    query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
    url = url.set(query=query)
    return Address("postgresql", url, f"`{url.set(drivername='postgresql').render_as_string()}`")


def make_engine(address: Address, timeout_s: float) -> AsyncEngine:
    """Connections to the database, made as they are needed.

    SQLite's commits are ours to begin (`isolation_level` None); its waits for another process's
    write end before `timeout_s`, so that the thread which waits is free again by then.
    """
    if address.kind == "sqlite":
        _make_file(Path(str(address.url.database)))
        engine = _pooled(
            address,
            timeout_s,
            pool_size=_SQLITE_CONNECTIONS,
            connect_args={"timeout": 0.8 * timeout_s, "isolation_level": None},
        )
        event.listen(engine.sync_engine, "connect", _begin_sqlite_session)
        return engine
    settings = {
        "application_name": "dialoop",
        # What we gave up on does not go on there for ever.
        "statement_timeout": str(int(timeout_s * 1000) + 1000),
        "idle_in_transaction_session_timeout": "60000",
    }
    return _pooled(
        address,
        timeout_s,
        pool_size=_POSTGRESQL_CONNECTIONS,
        pool_pre_ping=True,
        connect_args={"timeout": timeout_s, "server_settings": settings},
    )


def _pooled(address: Address, timeout_s: float, **settings: Any) -> AsyncEngine:
    return create_async_engine(
        address.url,
        max_overflow=0,
        pool_timeout=timeout_s,
        json_serializer=_json_text,
        json_deserializer=orjson.loads,
        hide_parameters=True,  # errors are logged, and users' words are not
        **settings,
    )


def _json_text(value: object) -> str:
    return orjson.dumps(value).decode()


def _make_file(path: Path) -> None:
    """Let the file be the owner's alone; SQLite gives its log the same rights."""
    with machine_errors(path, "opening"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)


def _begin_sqlite_session(connection: Any, _record: object) -> None:
    """Set what SQLite forgets with each connection."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
