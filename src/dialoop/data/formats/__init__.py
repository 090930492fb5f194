"""Layouts of records: one a file, each with `detect(row)` and `read(row)`; a plug-in is the same.

A layout claims a record by the columns that only it has. A record that none or several claim is
rejected, and the reason names them. `Row` is a mapping of the record's own columns that also knows
what people call the usual fields.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UserError
from dialoop.core.schema import Option, family
from dialoop.data import turns
from dialoop.data.columns import RecordError, Row, rename
from dialoop.data.report import NO_LAYOUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dialoop.data.sample import Sample


class Format(Option, frozen=True):
    """One layout."""

    @abstractmethod
    def detect(self, row: Row) -> bool:
        """Whether the record is in this layout."""

    @abstractmethod
    def read(self, row: Row) -> Sample:
        """The sample of a record that `detect` claims.

        Raises:
            RecordError: the record cannot be used.
        """


def formats(plugin: Path | None = None) -> tuple[Format, ...]:
    """Every layout: the folder's, those of installed packages, and those of a file.

    Args:
        plugin: a Python file with subclasses of `Format`.

    Raises:
        UserError: the file is missing, does not load, or holds no layout.
    """
    known = [
        cls.model_validate({})
        for cls in family("dialoop.data.formats").values()
        if issubclass(cls, Format)
    ]
    return (*known, *(_load_plugin(plugin) if plugin else ()))


def _load_plugin(path: Path) -> list[Format]:
    if not path.is_file():
        raise UserError(f"no such plug-in: `{path}`", hint="give a Python file with a layout")
    spec = importlib.util.spec_from_file_location(f"dialoop_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"plug-in `{path}` is not a Python file", hint="name it `something.py`")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"plug-in `{path}` does not load: {type(error).__name__}: {error}",
            hint="run it with python to see where",
        ) from error
    found = [
        value.model_validate({})
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Format) and value is not Format
    ]
    if not found:
        raise UserError(
            f"plug-in `{path}` holds no layout", hint="subclass dialoop.data.formats.Format in it"
        )
    return found


def to_row(value: Any, columns: Mapping[str, str]) -> Row:
    """A record as columns: a bare list of turns is a dialogue, one object in an array is itself.

    Raises:
        RecordError: neither object nor list of turns.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value if turns.is_turns(value) else value[0]
    if turns.is_turns(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise RecordError("not an object", type(value).__name__)
    return Row(rename(value, columns))


def recognise(row: Row, known: Sequence[Format]) -> Format:
    """The one layout that claims a record.

    Raises:
        RecordError: none does, or several do.
    """
    claims = [layout for layout in known if layout.detect(row)]
    if not claims:
        raise RecordError(NO_LAYOUT, f"columns {', '.join(map(str, row)) or 'none'}")
    if len(claims) > 1:
        names = " and ".join(f"`{layout.kind}`" for layout in claims)
        raise RecordError(f"claimed by two layouts, {names}", f"columns {', '.join(row)}")
    return claims[0]
