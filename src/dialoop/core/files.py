"""Files that are whole or absent: atomic writes, folder locks, content hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.core.errors import DialoopError, MachineError, UserError

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def machine_errors(path: Path, doing: str) -> Generator[None]:
    """Turn the operating system's refusals about `path` into errors that say what to do.

    Raises:
        UserError: a file stands where a folder is needed.
        MachineError: the disk is full, or the folder may not be written.
    """
    try:
        yield
    except DialoopError:
        raise
    except Exception as error:
        number = _os_error_number(error)
        if number in {errno.EEXIST, errno.ENOTDIR}:
            refuse_file(path)
        if number in {errno.ENOSPC, errno.EDQUOT}:
            free = shutil.disk_usage(_existing(path)).free / 2**20
            raise MachineError(
                f"no space left while {doing} `{path}` ({free:.0f} MiB free)",
                hint="free some space or choose another folder; what was there before is unharmed",
            ) from error
        if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise MachineError(
                f"no permission while {doing} `{path}`",
                hint="choose a folder that you may write, or change its owner",
            ) from error
        raise


def refuse_file(folder: Path) -> None:
    """Say early that a folder cannot be made.

    Raises:
        UserError: a file stands in its place, or above it.
    """
    if above := next((p for p in (folder, *folder.parents) if p.is_file()), None):
        raise UserError(
            f"`{above}` is a file, and `{folder}` needs a folder there",
            hint="choose another output",
        )


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically: readers see the old one or the new one, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """
    with machine_errors(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """Fill a folder under a temporary name and rename it to `path` at the end.

    A kill at any moment leaves either no folder or the whole one; leftovers are named `.tmp-*`.
    An existing `path` is replaced only once the new one is complete.

    Raises:
        MachineError: the disk is full, or the parent may not be written.
    """
    with machine_errors(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".tmp-{path.name}-"))
        temporary.chmod(0o755)
        try:
            yield temporary
            _sync_tree(temporary)
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".tmp-{path.name}-"))
                path.replace(old / "old")
                temporary.replace(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def lock_folder(folder: Path, purpose: str) -> Generator[None]:
    """Hold a folder for one run; the lock ends with the process, however it ends.

    Raises:
        UserError: another live process holds it.
    """
    with machine_errors(folder, "opening"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"`{folder}` is in use by another run ({file.read().strip() or 'unknown'})",
                hint=f"wait for it, or give this {purpose} a folder of its own",
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _os_error_number(error: Exception) -> int | None:
    """The system's error behind one that torch (as context) or safetensors (as text) wrapped."""
    for seen in (error, error.__context__):
        if isinstance(seen, OSError):
            return seen.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
