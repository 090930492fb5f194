"""Spec, Option, OneOf and Result: frozen, documented sections and families found in a folder.

A Spec is a job's whole schema. An Option is one choice in a family (an objective, a tuner, an
engine); it names itself with a literal `kind`. A field annotated with OneOf accepts any option
found in the family's folder, so adding an option is adding a file. A Result is what a job returns.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema
    from rich.console import RenderableType


class Spec(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A frozen section: unknown keys are errors, field docstrings are the help text."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings, and short names, by the dotted path of the field that they set."""


class Option(Spec, frozen=True):
    """One choice in a family; subclasses set `kind: Literal["name"] = "name"`."""

    kind: str


class Result(BaseModel, frozen=True):
    """What a job returns: `--json` prints its fields, the terminal shows its text."""

    @property
    def exit_code(self) -> int:
        """What the command ends with: 0, or 3 for a report that says no."""
        return 0

    def text(self) -> RenderableType:
        """What a person reads on the terminal when the job is done."""
        rows = self.model_dump(mode="json").items()
        return "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in rows)


@cache
def family(package: str) -> dict[str, type[Option]]:
    """Every option of a family by kind: the package's modules, then installed entry points.

    Args:
        package: dotted name of the folder, which is also the entry-point group.

    Raises:
        TypeError: two options share a kind.
    """
    folder = importlib.import_module(package)
    modules = [
        importlib.import_module(f"{package}.{m.name}")
        for m in pkgutil.iter_modules(folder.__path__)
    ]
    modules += [point.load() for point in entry_points(group=package)]
    found: dict[str, type[Option]] = {}
    for module in modules:
        for value in vars(module).values():
            if not (isinstance(value, type) and issubclass(value, Option)):
                continue
            if value.__module__ != module.__name__ or "kind" not in value.model_fields:
                continue
            kind = value.model_fields["kind"].default
            if kind in found:
                both = f"{value.__name__} and {found[kind].__name__}"
                raise TypeError(f"{package}: {both} share the kind `{kind}`")
            found[kind] = value
    return found


@dataclass(frozen=True)
class OneOf:
    """Field annotation: any option of the family that lives in `package`."""

    package: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Build the tagged union on `kind` the first time the spec is used."""
        first, *rest = family(self.package).values()
        if not rest:
            return handler.generate_schema(first)
        union: Any = first
        for option in rest:
            union |= option
        return handler.generate_schema(Annotated[union, Field(discriminator="kind")])


def describe(spec: type[Spec]) -> dict[str, Any]:
    """The JSON Schema of a spec: what the CLI help, the REST docs and the web form are made of."""
    return spec.model_json_schema()
