"""The database: opening, bounds, failures, the breaker; on both kinds."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, insert, select, text, update
from tests.gateway.opened import with_database

from dialoop.core.errors import DialoopError, MachineError, UpstreamError, UserError
from dialoop.gateway import database as module
from dialoop.gateway.database import Breaker, Database
from dialoop.gateway.store.address import read_url
from dialoop.gateway.store.faults import worded
from dialoop.gateway.store.tables import counters, schema

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection
    from tests.gateway.conftest import Server

COUNT = select(counters.c.value).where(counters.c.name == "n")


def open_only(url: str, timeout_s: float = 2.0) -> None:
    async def work(database: Database) -> None:
        del database

    with_database(url, work, timeout_s)


def refusal(url: str, kind: type[DialoopError], timeout_s: float = 2.0) -> str:
    with pytest.raises(kind) as caught:
        open_only(url, timeout_s)
    return str(caught.value)


def test_tables_are_made_once_and_found_again(url: str) -> None:
    async def work(database: Database) -> Any:
        await database.change(insert(counters).values(name="n", value=7))

    async def again(database: Database) -> Any:
        return (await database.rows(COUNT))[0]["value"]

    with_database(url, work)
    assert with_database(url, again) == 7


def test_several_processes_may_make_the_tables_at_once(url: str) -> None:
    async def work() -> None:
        opened = await asyncio.gather(*(Database.open(url, 10.0) for _ in range(5)))
        for database in opened:
            assert len(await database.rows(select(schema))) == 1
            await database.close()

    asyncio.run(work())


def test_tables_of_another_version_are_refused(url: str) -> None:
    async def work(database: Database) -> None:
        await database.change(update(schema).values(version=9))

    with_database(url, work)
    words = refusal(url, UserError)
    assert "has tables of version 9; this dialoop knows version 1" in words
    assert "use the dialoop that made them, or a newer one" in words


def test_a_failed_transaction_leaves_nothing(url: str) -> None:
    async def work(database: Database) -> Any:
        async def half(connection: AsyncConnection) -> None:
            await connection.execute(insert(counters).values(name="n", value=1))
            raise UserError("changed my mind")

        with pytest.raises(UserError, match="changed my mind"):
            await database.write(half)
        return await database.rows(COUNT)

    assert with_database(url, work) == []


def test_a_cancelled_call_gives_its_connection_back(url: str) -> None:
    async def work(database: Database) -> Any:
        begun = asyncio.Event()

        async def half(connection: AsyncConnection) -> None:
            await connection.execute(insert(counters).values(name="n", value=1))
            begun.set()
            await asyncio.sleep(60)

        call = asyncio.create_task(database.write(half))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_free(database)
        return await database.rows(COUNT)

    assert with_database(url, work) == []


async def until_free(database: Database) -> None:
    for _ in range(200):
        if not database.num_connections:
            return
        await asyncio.sleep(0.01)
    pytest.fail("connections are still in use")


def test_a_call_is_bounded_and_leaves_no_connection(url: str) -> None:
    async def work(database: Database) -> float:
        async def long(connection: AsyncConnection) -> None:
            await connection.execute(insert(counters).values(name="n", value=1))
            await asyncio.sleep(60)

        begun = time.monotonic()
        with pytest.raises(UpstreamError, match=r"the database has not answered within 0\.4 s"):
            await database.write(long)
        took = time.monotonic() - begun
        await until_free(database)
        assert await database.rows(COUNT) == []
        return took

    assert 0.35 < with_database(url, work, timeout_s=0.4) < 0.8


def test_more_calls_than_connections_take_turns(url: str) -> None:
    async def work(database: Database) -> Any:
        await database.change(insert(counters).values(name="n", value=0))
        more = update(counters).where(counters.c.name == "n").values(value=counters.c.value + 1)
        await asyncio.gather(*(database.change(more) for _ in range(60)))
        return (await database.rows(COUNT))[0]["value"]

    assert with_database(url, work, timeout_s=20.0) == 60


def test_text_that_cannot_be_stored_is_refused_in_words(url: str) -> None:
    async def work(database: Database) -> None:
        for name, words in (("a\0b", "NUL"), ("a\ud800", "surrogate")):
            with pytest.raises(UserError, match=words):
                await database.change(insert(counters).values(name=name, value=1))
            with pytest.raises(UserError, match=words):
                await database.rows(select(counters).where(counters.c.name == name))

    with_database(url, work)


# PostgreSQL


def test_a_frozen_server_costs_the_bound_and_works_again_afterwards(postgres: Server) -> None:
    async def work(database: Database) -> None:
        more = update(schema).values(version=schema.c.version)
        await asyncio.gather(*(database.rows(select(schema)) for _ in range(5)))  # warm
        postgres.signal(signal.SIGSTOP)
        try:
            for call in (lambda: database.rows(select(schema)), lambda: database.change(more)):
                begun = time.monotonic()
                with pytest.raises(UpstreamError, match=r"not answered within 0\.5 s$"):
                    await unhinted(call())
                assert 0.45 < time.monotonic() - begun < 0.8
            several = [database.rows(select(schema)) for _ in range(20)]
            ended = await asyncio.gather(*several, return_exceptions=True)
            assert all(isinstance(error, UpstreamError) for error in ended)
            begun = time.monotonic()
            await until_free(database)
            assert time.monotonic() - begun < 0.2
            assert asyncio.all_tasks() == {asyncio.current_task()}
            begun = time.monotonic()
            with pytest.raises(UpstreamError, match="3 times in a row or more"):
                await database.rows(select(schema))
            assert time.monotonic() - begun < 0.05
        finally:
            postgres.signal(signal.SIGCONT)
        await asyncio.sleep(1.1)
        assert len(await database.rows(select(schema))) == 1
        assert await database.change(more) == 1

    with_database(postgres.new_database(), work, timeout_s=0.5)


async def unhinted(call: Any) -> Any:
    try:
        return await call
    except DialoopError as error:
        error.hint = None
        raise


def test_a_server_frozen_from_the_start_is_bounded(postgres: Server) -> None:
    url = postgres.new_database()
    postgres.signal(signal.SIGSTOP)
    begun = time.monotonic()
    try:
        words = refusal(url, UpstreamError, timeout_s=0.5)
    finally:
        postgres.signal(signal.SIGCONT)
    assert "not answered within 0.5 s" in words
    assert time.monotonic() - begun < 2.0


def test_connections_that_the_server_closed_are_made_anew(postgres: Server) -> None:
    others = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    async def work(database: Database) -> None:
        await asyncio.gather(*(database.rows(select(schema)) for _ in range(4)))
        await database.rows(others)
        for _ in range(4):
            assert len(await database.rows(select(schema))) == 1

    with_database(postgres.new_database(), work)


def test_a_connection_lost_in_a_call_is_a_failure_of_the_server(postgres: Server) -> None:
    async def work(database: Database) -> None:
        suicide = text("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(UpstreamError, match="failed: connection was closed in the middle"):
            await database.rows(suicide)
        assert len(await database.rows(select(schema))) == 1

    with_database(postgres.new_database(), work)


def test_a_connection_that_is_gone_without_a_word_is_a_failure_of_the_server() -> None:
    address = read_url("postgresql://h/x")
    for gone, found in ((True, UpstreamError), (False, type(None))):
        error = exc.InterfaceError("", None, Exception("closed"), connection_invalidated=gone)
        assert isinstance(worded(error, address, opening=False), found)


def test_a_missing_database_is_named(postgres: Server) -> None:
    words = refusal(postgres.url("nowhere"), UserError)
    assert 'database "nowhere" does not exist' in words
    assert "make it with `createdb`, or correct the address" in words


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = refusal(f"postgresql://u:hunter2@127.0.0.1:{port}/x", UpstreamError)
    assert f"`postgresql://u:***@127.0.0.1:{port}/x` cannot be reached" in words
    assert "hunter2" not in words


# SQLite


def test_another_process_that_keeps_writing_costs_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "gateway.db"

    async def work(database: Database) -> None:
        num_threads = threading.active_count()
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        writes = [database.change(update(schema).values(version=1)) for _ in range(8)]
        ending = asyncio.gather(*writes, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert len(await database.rows(select(schema))) == 1  # readers never wait
        assert time.monotonic() - begun < 0.3
        assert {str(error).split("\n")[0] for error in await ending} == {
            "the database has not answered within 0.5 s"
        }
        assert time.monotonic() - begun < 0.8
        await asyncio.sleep(0.6)
        assert threading.active_count() <= num_threads  # none waits any more
        other.rollback()
        other.close()
        await asyncio.sleep(0.6)
        assert await database.change(update(schema).values(version=1)) == 1

    with_database(f"sqlite:///{file}", work, timeout_s=0.5)


def test_the_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    open_only(f"sqlite:///{tmp_path}/deep/gateway.db")
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "deep" / "gateway.db").stat().st_mode) == 0o600


def test_the_word_sqlite_is_a_file_under_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path))
    open_only("sqlite")
    assert (tmp_path / "gateway" / "gateway.db").stat().st_size > 0


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("dear diary " * 100)
    words = refusal(f"sqlite:///{tmp_path}/notes.db", MachineError)
    assert "notes.db` is no whole SQLite database: file is not a database" in words


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in refusal(f"sqlite:///{tmp_path}/file/gateway.db", UserError)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        async def fill(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql("PRAGMA max_page_count = 30")
            await connection.execute(insert(counters).values(name="n" * 500_000, value=1))

        with pytest.raises(MachineError, match="database or disk is full"):
            await database.read(fill)

    with_database(f"sqlite:///{tmp_path}/gateway.db", work)


def test_a_file_without_write_ahead_log_is_refused() -> None:
    class Elsewhere:
        async def exec_driver_sql(self, _: str) -> Any:
            return self

        def scalar_one(self) -> str:
            return "delete"

    with pytest.raises(MachineError, match="no write-ahead log on the file `x`"):
        asyncio.run(module._write_ahead(Elsewhere(), "the file `x`"))  # pyright: ignore[reportArgumentType]


# Addresses


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "the database's address is not a URL"),
        ("mysql://u:hunter2@h/x", "unknown database `mysql`"),
        ("sqlite://", "names no SQLite file"),
        ("sqlite:///:memory:", "names no SQLite file"),
        ("sqlite:///a.db?mode=ro", "names no SQLite file"),
        ("postgresql://h/x?pool=3", "the unknown option `pool`"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_url(url)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_addresses_that_are_read() -> None:
    for scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
        address = read_url(f"{scheme}://u:p@h:1/x?sslmode=require")
        assert address.url.drivername == "postgresql+asyncpg"
        assert address.url.query == {"ssl": "require"}
        assert address.shown == "`postgresql://u:***@h:1/x?ssl=require`"
    assert str(read_url("sqlite:////a/b.db").url) == "sqlite+aiosqlite:////a/b.db"


def test_a_missing_package_is_named_with_the_command() -> None:
    with pytest.raises(MachineError) as caught:
        module._require("no_such_driver", "postgres")
    assert "needs the package `no_such_driver`" in str(caught.value)
    assert "pip install 'dialoop[postgres]'" in str(caught.value)


def test_what_requests_need_loads_no_database_package() -> None:
    parts = ("database", "keys", "keys_run", "keys_spec")
    code = (
        f"import sys, {', '.join(f'dialoop.gateway.{part}' for part in parts)};"
        "sys.exit(bool({'sqlalchemy', 'aiosqlite', 'asyncpg'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The breaker


def test_after_three_slow_calls_one_a_second_is_tried() -> None:
    now = 100.0
    breaker = Breaker(lambda: now)
    for _ in range(3):
        assert breaker.admits()
        breaker.timed_out()
    assert not breaker.admits()
    now += 0.99
    assert not breaker.admits()
    now += 0.02
    assert breaker.admits()
    assert not breaker.admits()  # one at a time
    breaker.timed_out()
    assert not breaker.admits()
    now += 1.01
    assert breaker.admits()
    breaker.answered()
    assert all(breaker.admits() for _ in range(5))


def test_an_answer_between_slow_calls_starts_the_count_anew() -> None:
    breaker = Breaker(lambda: 0.0)
    for _ in range(5):
        breaker.timed_out()
        breaker.timed_out()
        breaker.answered()
    assert breaker.admits()
