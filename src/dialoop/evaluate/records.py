"""The records of a task's own files, in any form that `dialoop data inspect` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UserError
from dialoop.data.read import Record, read

if TYPE_CHECKING:
    from collections.abc import Iterable

Json = dict[str, Any]


def objects(files: Iterable[str], task: str) -> list[tuple[str, Json]]:
    """The objects in some files, in order, each with its place.

    Raises:
        UserError: a file is missing or damaged, or holds anything else.
    """
    found: list[tuple[str, Json]] = []
    for file in files:
        for item in read(Path(file)):
            if not isinstance(item, Record):
                where = getattr(item, "origin", None) or file
                raise UserError(
                    f"task {task}: `{file}` has a record that cannot be read ({where}: "
                    f"{item.reason})",
                    hint="mend the record or take it out",
                )
            if not isinstance(item.value, dict):
                kind = type(item.value).__name__
                raise UserError(f"task {task}: {item.origin}: expected an object, got {kind}")
            found.append((str(item.origin), item.value))
    if not found:
        raise UserError(f"task {task}: no records in {', '.join(files)}", hint="check `files`")
    return found


def field(record: Json, name: str, where: str, task: str) -> Any:
    """A field that a record must have.

    Raises:
        UserError: it has not.
    """
    if name not in record or record[name] is None:
        known = ", ".join(record)
        raise UserError(f"task {task}: {where}: no field `{name}` (there are: {known})")
    return record[name]
