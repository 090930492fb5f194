"""Tools of a chat request: which may be called, whether one must be, and by which schema."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dialoop.chat.calls import call_schema
from dialoop.chat.message import tool_from_openai
from dialoop.core.errors import UserError
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from dialoop.chat.calls import CallSyntax
    from dialoop.chat.message import Tool
    from dialoop.chat.template import Template

Json = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_ARGUMENTS: Json = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Calling:
    """How one request may call tools."""

    tools: tuple[Tool, ...]
    """Those that the prompt tells of."""
    syntax: CallSyntax
    schema: Json | None
    """Of the call, where there must be one: the answer is that call and nothing else."""
    is_single: bool
    """Whether the answer ends with its first call."""


def read_calling(body: Json, template: Template) -> Calling | None:
    """The tools of a request; None where none may be called.

    Raises:
        ApiError: a field is wrong, or this model's way to call tools is not known.
    """
    tools, strict = _tools(body.get("tools"))
    wanted = _choice(body.get("tool_choice"), [tool.name for tool in tools])
    parallel = body.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise bad("parallel_tool_calls", f"true or false is required, got {parallel!r}")
    if not tools or wanted == "none":
        return None
    if wanted == "auto" and strict:
        raise bad(
            "tools",
            f"`strict` of {strict[0]} can be kept only where a call is certain: set `tool_choice` "
            "to `required` or a function, or leave `strict` out",
        )
    syntax = template.call_syntax
    if syntax is None:
        raise ApiError(
            400,
            "tools: the chat template of this model writes calls in a way that is not known here",
            param="tools",
            code="unsupported_parameter",
        )
    named = tuple(tool for tool in tools if wanted in {tool.name, "required"})
    offered = {tool.name: tool.parameters or _NO_ARGUMENTS for tool in named}
    schema = None if wanted == "auto" else call_schema(offered, syntax)
    return Calling(tools, syntax, schema, parallel is False)


def _tools(raw: Any) -> tuple[tuple[Tool, ...], list[str]]:
    """The tools, and the names of those that are strict."""
    if raw is None:
        return (), []
    if not isinstance(raw, list):
        raise bad("tools", "a list of functions is required")
    found: dict[str, Tool] = {}
    strict: list[str] = []
    for number, item in enumerate(cast("list[Any]", raw)):
        where = f"[{number}]"
        if not isinstance(item, dict) or cast("Json", item).get("type") != "function":
            raise bad("tools", f"{where}: only tools of type `function` are known")
        try:
            tool = tool_from_openai(item, where)
        except UserError as error:
            raise bad("tools", Exception.__str__(error)) from error
        if not _NAME.fullmatch(tool.name) or tool.name in found:
            raise bad("tools", f"{where}: `{tool.name}` is no name for a function, or stands twice")
        function = cast("Json", item)["function"]
        if not isinstance(function.get("parameters"), dict | None):
            raise bad("tools", f"{where}: parameters are a JSON Schema")
        found[tool.name] = tool
        if function.get("strict"):
            strict.append(tool.name)
    return tuple(found.values()), strict


def _choice(raw: Any, names: list[str]) -> str:
    """`none`, `auto`, `required`, or the name of a function."""
    if raw is None or raw in ("none", "auto"):
        return raw or "auto"
    if raw == "required" and names:
        return raw
    function = cast("Json", raw).get("function") if isinstance(raw, dict) else None
    name = cast("Json", function).get("name") if isinstance(function, dict) else None
    if name not in names:
        known = ", ".join(names) or "none are given"
        raise bad(
            "tool_choice", f"none, auto, required or one of the tools is required (tools: {known})"
        )
    return str(name)
