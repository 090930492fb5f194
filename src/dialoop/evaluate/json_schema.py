"""Whether a JSON value fits a JSON Schema: the keywords that answers are described with.

Source: JSON Schema 2020-12, Core and Validation. A keyword that is not among these is refused,
never passed over.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]

_NOTES = {"$schema", "$id", "$comment", "title", "description", "default", "examples", "format"}
"""Keywords that assert nothing."""
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "number": lambda v: _is_number(v),
    "integer": lambda v: _is_number(v) and v == int(v),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda v, bound: v >= bound),
    "maximum": ("number", lambda v, bound: v <= bound),
    "exclusiveMinimum": ("number", lambda v, bound: v > bound),
    "exclusiveMaximum": ("number", lambda v, bound: v < bound),
    "multipleOf": ("number", lambda v, bound: v / bound == int(v / bound)),
    "minLength": ("string", lambda v, bound: len(v) >= bound),
    "maxLength": ("string", lambda v, bound: len(v) <= bound),
    "pattern": ("string", lambda v, bound: re.search(bound, v) is not None),
    "minItems": ("array", lambda v, bound: len(v) >= bound),
    "maxItems": ("array", lambda v, bound: len(v) <= bound),
    "uniqueItems": ("array", lambda v, bound: not bound or len(set(map(_key, v))) == len(v)),
    "minProperties": ("object", lambda v, bound: len(v) >= bound),
    "maxProperties": ("object", lambda v, bound: len(v) <= bound),
}
_ONE = ("items", "additionalProperties", "not")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_KNOWN = {"type", "enum", "const", "properties", "required", *_BOUNDS, *_ONE, *_MANY}


def refuse_unknown(schema: Any, path: str = "$") -> None:
    """Check that every keyword of a schema is known here.

    Raises:
        ValueError: one is not, or the schema is none; the message says where.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError(f"{path}: a schema is an object, not {type(schema).__name__}")  # noqa: TRY004  pydantic wants it
    rules = cast("Json", schema)
    if unknown := sorted(rules.keys() - _KNOWN - _NOTES):
        raise ValueError(f"{path}: the keyword `{unknown[0]}` is not known here")
    listed = rules.get("type", [])
    for kind in [listed] if isinstance(listed, str) else listed:
        if kind not in _TYPES:
            raise ValueError(f"{path}.type: unknown `{kind}` (known: {', '.join(_TYPES)})")
    for name in _ONE:
        if name in rules:
            refuse_unknown(rules[name], f"{path}.{name}")
    for name in _MANY:
        for n, inner in enumerate(rules.get(name, ())):
            refuse_unknown(inner, f"{path}.{name}[{n}]")
    for name, inner in rules.get("properties", {}).items():
        refuse_unknown(inner, f"{path}.properties.{name}")


def problems(schema: Any, value: Any, path: str = "$") -> list[str]:
    """What of a value does not fit; empty when all does.

    Args:
        schema: checked by `refuse_unknown`.
        value: decoded JSON.
        path: where the value stands, for the words.
    """
    if isinstance(schema, bool):
        return [] if schema else [f"{path} may not be there"]
    found = _plain(schema, value, path)
    if isinstance(value, dict):
        found += _object(schema, cast("Json", value), path)
    if isinstance(value, list):
        items = cast("list[Any]", value)
        first = schema.get("prefixItems", [])
        for n, item in enumerate(items):
            inner = first[n] if n < len(first) else schema.get("items", True)
            found += problems(inner, item, f"{path}[{n}]")
    return found + _joined(schema, value, path)


def _plain(schema: Json, value: Any, path: str) -> list[str]:
    found: list[str] = []
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_TYPES[kind](value) for kind in kinds):
            return [f"{path} is no {' or '.join(kinds)}"]
    if "const" in schema and _key(value) != _key(schema["const"]):
        found.append(f"{path} is not {schema['const']!r}")
    if "enum" in schema and _key(value) not in map(_key, schema["enum"]):
        found.append(f"{path} is none of {schema['enum']}")
    for name, (kind, holds) in _BOUNDS.items():
        if name in schema and _TYPES[kind](value) and not holds(value, schema[name]):
            found.append(f"{path} breaks {name} {schema[name]}")
    return found


def _object(schema: Json, value: Json, path: str) -> list[str]:
    found = [f"{path} lacks `{name}`" for name in schema.get("required", ()) if name not in value]
    known = schema.get("properties", {})
    for name, inner in value.items():
        rule = known[name] if name in known else schema.get("additionalProperties", True)
        found += problems(rule, inner, f"{path}.{name}")
    return found


def _joined(schema: Json, value: Any, path: str) -> list[str]:
    found: list[str] = []
    for inner in schema.get("allOf", ()):
        found += problems(inner, value, path)
    if "anyOf" in schema and all(problems(inner, value, path) for inner in schema["anyOf"]):
        found.append(f"{path} fits none of anyOf")
    if "oneOf" in schema:
        fits = sum(not problems(inner, value, path) for inner in schema["oneOf"])
        if fits != 1:
            found.append(f"{path} fits {fits} of oneOf")
    if "not" in schema and not problems(schema["not"], value, path):
        found.append(f"{path} fits what it must not")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Any) -> str:
    """The same for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: plain(inner) for name, inner in cast("Json", item).items()}
        if isinstance(item, list):
            return [plain(inner) for inner in cast("list[Any]", item)]
        return float(item) if _is_number(item) else item

    return json.dumps(plain(value), sort_keys=True)
