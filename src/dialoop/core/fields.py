"""The fields of a spec by dotted path: what flags, help, completion and job files are made of."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dialoop.core.schema import OneOf, Option, Spec, family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

Shape = Literal["value", "flag", "list", "map", "section", "family"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field that a user may set."""

    path: str
    """Dotted: `tuner.rank`."""
    shape: Shape
    """`flag` is true or false; `family` is a choice of options, each with fields of its own."""
    type: str
    """The type in a word or two, for help: `int`, `lora | full`."""
    meaning: str
    default: str | None
    """As a user would write it; None when the field must be given."""
    choices: tuple[str, ...] = ()
    """What may be written, where that is a closed list."""
    option: str = ""
    """The option that has this field, as `tuner=lora`; empty outside families."""
    takes_text: bool = False
    """Whether any text is a value: then `null` and `007` mean themselves."""
    takes_none: bool = False
    takes_number: bool = False
    """For a list field: whether one bare number is a value too."""
    items: Literal["text", "section", "option"] = "text"
    """For a list field: whether an item is a mapping, or the kind of an option or its mapping."""

    @property
    def is_required(self) -> bool:
        """Whether the job cannot be made without it."""
        return self.default is None


@cache
def fields(spec: type[Spec]) -> tuple[Field, ...]:
    """Every field of a spec, sections and families before what is inside them."""
    return tuple(_walk(spec, None, "", ""))


@cache
def by_path(spec: type[Spec]) -> dict[str, Field]:
    """The fields of a spec by path; where options share a path, the first option's."""
    found: dict[str, Field] = {}
    for field in fields(spec):
        found.setdefault(field.path, field)
    return found


def options_of(info: FieldInfo) -> dict[str, type[Option]] | None:
    """The options by kind where a field is a choice from a family; otherwise None."""
    for _, metadata in _members(info.annotation, tuple(info.metadata)):
        for mark in metadata:
            if isinstance(mark, OneOf):
                return family(mark.package)
    return None


def section_of(info: FieldInfo) -> type[Spec] | None:
    """The spec of a field that is a section; otherwise None."""
    for kind, _ in _members(info.annotation, ()):
        if isinstance(kind, type) and issubclass(kind, Spec):
            return kind
    return None


def default_of(info: FieldInfo) -> Any:
    """A field's default value, or `PydanticUndefined`."""
    return info.get_default(call_default_factory=True, validated_data={})


def _walk(spec: type[Spec], made: Spec | None, prefix: str, option: str) -> Iterator[Field]:
    """The fields under `prefix`; `made` is an instance that holds the defaults."""
    for name, info in spec.model_fields.items():
        if name == "kind" and option and "." in prefix:
            continue
        default = getattr(made, name) if made is not None else default_of(info)
        path = f"{prefix}{name}"
        if (options := options_of(info)) is not None:
            yield from _family(path, info, options, default, option)
        elif (section := section_of(info)) is not None:
            words = "section" if default is not PydanticUndefined else None
            yield Field(path, "section", "section", info.description or "", words, (), option)
            inner = default if isinstance(default, section) else None
            yield from _walk(section, inner, f"{path}.", option)
        else:
            yield _leaf(path, info, default, option)


def _family(
    path: str, info: FieldInfo, options: dict[str, type[Option]], default: Any, option: str
) -> Iterator[Field]:
    chosen = default.kind if isinstance(default, Option) else _write(default)
    words = " | ".join(options)
    meaning = info.description or ""
    yield Field(path, "family", words, meaning, chosen, tuple(options), option)
    for kind, member in options.items():
        made = default if isinstance(default, member) else None
        yield from _walk(member, made, f"{path}.", f"{path}={kind}")


def _leaf(path: str, info: FieldInfo, default: Any, option: str) -> Field:
    members = [kind for kind, _ in _members(info.annotation, ())]
    plain = [kind for kind in members if kind is not type(None)]
    shape = _shape(plain)
    choices = tuple(choice for kind in plain for choice in _choices(kind))
    items, kinds = _items(plain)
    choices = choices or kinds
    return Field(
        path,
        shape,
        " | ".join(dict.fromkeys(_word(kind) for kind in plain)),
        info.description or "",
        _write(default),
        choices if kinds or all(_choices(kind) for kind in plain) else (),
        option,
        takes_text=str in plain,
        takes_none=len(plain) < len(members),
        takes_number=bool({int, float} & set(plain)),
        items=items,
    )


def _items(plain: list[Any]) -> tuple[Literal["text", "section", "option"], tuple[str, ...]]:
    """What the items of a list field are, and the kinds where they are options."""
    for kind in plain:
        if not _is_list(kind) or not get_args(kind):
            continue
        for item, metadata in _members(get_args(kind)[0], ()):
            marks = [mark for mark in metadata if isinstance(mark, OneOf)]
            if marks:
                return "option", tuple(family(marks[0].package))
            if isinstance(item, type) and issubclass(item, BaseModel):
                return "section", ()
    return "text", ()


def _members(annotation: Any, metadata: tuple[Any, ...]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The types that a union allows, each with the marks on it; one entry when no union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        return _members(inner, metadata + tuple(marks))
    if origin in {Union, types.UnionType}:
        return [found for item in get_args(annotation) for found in _members(item, metadata)]
    return [(annotation, metadata)]


def _shape(plain: list[Any]) -> Shape:
    if any(_is_list(kind) for kind in plain):
        return "list"
    if any((get_origin(kind) or kind) in {dict, Mapping} for kind in plain):
        return "map"
    return "flag" if plain == [bool] else "value"


def _is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in {list, tuple, set, frozenset, Sequence, AbstractSet}


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(str(choice) for choice in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(member.value) for member in kind)
    return ()


def _word(kind: Any) -> str:
    if choices := _choices(kind):
        return " | ".join(choices)
    if _is_list(kind):
        items = [item for item in get_args(kind) if item is not Ellipsis]
        return f"{_union_word(items[0])} ..." if items else "text ..."
    if (get_origin(kind) or kind) in {dict, Mapping}:
        return "name=value ..."
    names = {str: "text", bool: "yes | no", float: "number", int: "int"}
    return names.get(kind) or str(getattr(kind, "__name__", kind)).lower()


def _union_word(annotation: Any) -> str:
    words: list[str] = []
    for kind, metadata in _members(annotation, ()):
        marks = [mark for mark in metadata if isinstance(mark, OneOf)]
        words += list(family(marks[0].package)) if marks else [_word(kind)]
    return " | ".join(dict.fromkeys(words))


def _write(value: Any) -> str | None:
    """A default as a user would write it; None when there is no default."""
    if value is PydanticUndefined:
        return None
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value)
        return " ".join(f"{key}={item}" for key, item in pairs.items()) or "empty"
    if isinstance(value, list | tuple | set | frozenset):
        items = cast("Sequence[Any]", value)
        return " ".join(_write(item) or "" for item in items) or "empty"
    return str(value)
