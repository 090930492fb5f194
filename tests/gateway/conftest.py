"""Databases to keep things in: a new SQLite file, and a new database of a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import signal
    from collections.abc import Generator

PROGRAMS = ("initdb", "pg_ctl", "createdb")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop of asynchronous tests: that of the gateway's workers."""
    return "asyncio", {"use_uvloop": True}


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL of the tests' own, reached by a socket in its folder."""

    folder: Path

    def url(self, name: str) -> str:
        """The address of one of its databases."""
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def new_database(self) -> str:
        """The address of a new, empty one."""
        name = f"test_{time.monotonic_ns()}"
        call(self.folder, "createdb", "-h", str(self.folder), "-U", "postgres", name)
        return self.url(name)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and all its processes."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for process in [first, *map(int, children)]:
            with suppress(ProcessLookupError):  # a child may end when it is awake again
                os.kill(process, number)


def call(folder: Path, program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs, which refuse to run as root, as the folder's owner."""
    path = shutil.which(program)
    assert path is not None
    owner = folder.stat().st_uid
    user = {"user": owner, "group": owner, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [path, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        **user,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def postgres() -> Generator[Server]:
    """One server for all tests, in a folder whose path is short enough for its socket."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"no PostgreSQL on this machine: {', '.join(missing)} missing")
    folder = Path(tempfile.mkdtemp(prefix="dl-pg-"))
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    data = str(folder / "data")
    try:
        call(
            folder, "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"
        )
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        log = str(folder / "log")
        call(folder, "pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
        yield Server(folder)
        call(folder, "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    return request.getfixturevalue("postgres").new_database()
