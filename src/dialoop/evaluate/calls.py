"""Whether tool calls are the ones that were wanted: by function, arguments and types.

Source: the AST match of the Berkeley Function-Calling Leaderboard, Patil et al. 2025: an argument
may have any of the listed values, an empty text among them allows leaving it out, texts are alike
without case, spaces and `,./-_*^`, and parallel calls match in any order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.message import Tool, ToolCall

Json = dict[str, Any]

_LEFT_OUT = re.compile(r"[ ,./\-_*^]")


def safe_name(name: str) -> str:
    """A function's name as every server takes it: without dots and the like."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def standard_schema(schema: Any) -> Any:
    """A parameter description of BFCL as JSON Schema: its type names replaced."""
    if isinstance(schema, list):
        return [standard_schema(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    out = {name: standard_schema(value) for name, value in cast("Json", schema).items()}
    kind = out.get("type")
    names = {"dict": "object", "float": "number", "tuple": "array", "any": None}
    if isinstance(kind, str) and kind in names:
        del out["type"]
        if names[kind]:
            out["type"] = names[kind]
    return out


def problems(
    calls: Sequence[ToolCall], wanted: Sequence[Json], tools: Sequence[Tool]
) -> tuple[str, ...]:
    """What is wrong with calls; empty when they are those that were wanted.

    Args:
        calls: what was answered.
        wanted: one object a call, `{function: {argument: [allowed values]}}`.
        tools: their descriptions, for required arguments and types.
    """
    if len(calls) != len(wanted):
        return (f"{len(calls)} calls, {len(wanted)} wanted",)
    known = {safe_name(tool.name): tool for tool in tools}
    table = [[_misfit(call, want, known) for call in calls] for want in wanted]
    if _assigned(table, 0, frozenset()):
        return ()
    first = next((row for row in table if all(row)), None)
    return (min(first, key=len) if first else "two wanted calls are met by one only",)


def _assigned(table: list[list[str]], row: int, taken: frozenset[int]) -> bool:
    """Whether the wanted calls from `row` on can be given calls of their own."""
    if row == len(table):
        return True
    return any(
        not misfit and n not in taken and _assigned(table, row + 1, taken | {n})
        for n, misfit in enumerate(table[row])
    )


def _misfit(call: ToolCall, wanted: Json, tools: dict[str, Tool]) -> str:
    ((name, arguments),) = wanted.items()
    if safe_name(call.name) != safe_name(name):
        return f"calls `{call.name}`, not `{name}`"
    tool = tools.get(safe_name(name))
    schema = (tool.parameters if tool else None) or {}
    for needed in schema.get("required", ()):
        if needed not in call.arguments:
            return f"`{name}` lacks `{needed}`"
    for given, value in call.arguments.items():
        if given not in arguments:
            return f"`{name}` has no argument `{given}` to be given"
        kind = schema.get("properties", {}).get(given, {}).get("type")
        if not _is_allowed(value, arguments[given], kind):
            return f"`{given}` is {value!r}, none of {arguments[given]}"
    for name_left, allowed in arguments.items():
        if name_left not in call.arguments and "" not in allowed:
            return f"`{name}` lacks `{name_left}`"
    return ""


def _is_allowed(value: Any, allowed: Sequence[Any], kind: str | None) -> bool:
    return any(_is_alike(value, item, kind) for item in allowed)


def _is_alike(value: Any, wanted: Any, kind: str | None = None) -> bool:
    if isinstance(wanted, bool) or isinstance(value, bool):
        return value is wanted
    if isinstance(wanted, int | float) and isinstance(value, int | float):
        is_whole = kind != "integer" or isinstance(value, int)
        return is_whole and value == wanted
    if isinstance(wanted, str) and isinstance(value, str):
        return _plain(value) == _plain(wanted)
    if isinstance(wanted, list) and isinstance(value, list):
        pairs = zip(value, cast("list[Any]", wanted), strict=False)
        return len(value) == len(wanted) and all(_is_alike(a, b) for a, b in pairs)
    if isinstance(wanted, dict) and isinstance(value, dict):
        return _is_alike_object(cast("Json", value), cast("Json", wanted))
    return value is None and wanted is None


def _is_alike_object(value: Json, wanted: Json) -> bool:
    """Nested objects list the allowed values of each field, as arguments do."""
    if not value.keys() <= wanted.keys():
        return False
    for name, listed in wanted.items():
        allowed = listed if isinstance(listed, list) else [listed]
        if name not in value:
            if "" not in allowed:
                return False
        elif not _is_allowed(value[name], cast("list[Any]", allowed), None):
            return False
    return True


def _plain(text: str) -> str:
    return _LEFT_OUT.sub("", text).replace("'", '"').casefold()
