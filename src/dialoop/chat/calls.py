"""Tool calls in an answer's text: how a checkpoint writes them, and how they are read as they come.

A checkpoint whose template knows tools writes them in its own way, which is found out by rendering
one call: a JSON object with the function's name and its arguments, between two fixed texts. Qwen,
Hermes, InternLM and Llama 3 differ in those texts and in one key only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from dialoop.chat.message import ToolCall, decode_arguments
from dialoop.core.errors import UserError

PROBE = ToolCall("look_up_7319", {"place": "731904"}, "call00001")
_THOUGHT = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls are written."""

    begin: str
    """Text before the JSON object; empty where an answer that begins with `{` is a call."""
    end: str
    """Text behind it, which the end of the answer may stand for."""
    arguments: str
    """The key of the arguments: `arguments` or `parameters`."""

    @property
    def mark(self) -> str:
        """What tells that a call begins."""
        return self.begin.strip()


TAGS = CallSyntax("<tool_call>\n", "\n</tool_call>", "arguments")
"""How `tool_formats.json_call` writes them."""


def find_syntax(answer: str, end: str) -> CallSyntax | None:
    """How a template writes calls, from an answer that calls `PROBE`.

    Args:
        answer: as rendered, behind the prompt.
        end: text of the token that ends an answer.

    Returns:
        None where the call is not one JSON object with its name and its arguments.
    """
    answer = _THOUGHT.sub("", answer)
    for found in re.finditer(r"\{", answer):
        value, stop = _decoded(answer, found.start())
        keys = [key for key in ("arguments", "parameters") if value.get(key) == PROBE.arguments]
        if value.get("name") == PROBE.name and keys and len(value) == 2:
            behind = answer[stop:].partition(end)[0] if end else answer[stop:]
            return CallSyntax(answer[: found.start()], behind, keys[0])
    return None


def call_schema(offered: dict[str, dict[str, Any]], syntax: CallSyntax) -> dict[str, Any]:
    """The JSON Schema of a call of one of some functions.

    Args:
        offered: JSON Schema of the arguments, by name.
        syntax: how the checkpoint writes calls.
    """
    definitions = {f"tool_{n}": _moved(own, n) for n, own in enumerate(offered.values())}
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                syntax.arguments: {"$ref": f"#/$defs/tool_{n}"},
            },
            "required": ["name", syntax.arguments],
            "additionalProperties": False,
        }
        for n, name in enumerate(offered)
    ]
    return {"$defs": definitions, "anyOf": calls}


def _moved(schema: Any, number: int) -> Any:
    """A schema whose references still hit when it stands among the definitions of another."""
    if isinstance(schema, list):
        return [_moved(item, number) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    out = {key: _moved(value, number) for key, value in cast("dict[str, Any]", schema).items()}
    link = out.get("$ref")
    if isinstance(link, str) and link.startswith("#"):
        out["$ref"] = f"#/$defs/tool_{number}{link[1:]}"
    return out


class CallReader:
    """Takes calls out of text that comes piece by piece.

    What looks like the beginning of a call is held back until it is one, or is none and goes out as
    text; so does the white space around calls.

    Args:
        syntax: how the checkpoint writes calls.
    """

    def __init__(self, syntax: CallSyntax) -> None:
        self._syntax = syntax
        self._held = ""
        self._is_inside = False
        self._num_calls = 0
        self._space = ""  # before the mark
        self._is_text = False  # an answer without marks that has begun with something else than `{`

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The text that is certain after this much more, and the calls that are whole."""
        self._held += text
        out: list[str] = []
        calls: list[ToolCall] = []
        while (step := self._step(is_last=False)) is not None:
            out.append(step[0])
            calls += step[1]
        return "".join(out), tuple(calls)

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back, now that nothing follows."""
        out: list[str] = []
        calls: list[ToolCall] = []
        while self._held and (step := self._step(is_last=True)) is not None:
            out.append(step[0])
            calls += step[1]
        text = "".join(out) + self._held
        self._held = ""
        return ("" if self._num_calls and not text.strip() else text), tuple(calls)

    def _step(self, *, is_last: bool) -> tuple[str, list[ToolCall]] | None:
        """One piece of text or one call off the held text; None where more must come first."""
        if self._is_inside:
            return self._call(is_last=is_last)
        mark = self._syntax.mark
        if not mark:
            self._is_text = self._is_text or self._held.lstrip()[:1] not in {"", "{"}
            self._is_inside = not self._is_text and self._held.lstrip().startswith("{")
            return ("", []) if self._is_inside else self._text(len(self._held))
        at = self._held.find(mark)
        if at < 0:
            return self._text(len(self._held) - self._num_doubtful(mark))
        before, self._held = self._held[:at], self._held[at + len(mark) :]
        self._space = before[len(before.rstrip()) :]
        self._is_inside = True
        return before.rstrip(), []

    def _text(self, num: int) -> tuple[str, list[ToolCall]] | None:
        if not num:
            return None
        out, self._held = self._held[:num], self._held[num:]
        return out, []

    def _num_doubtful(self, mark: str) -> int:
        """Length of the end of the held text that may belong to a call: white space and a mark."""
        size = next(
            (n for n in range(len(mark) - 1, 0, -1) if self._held.endswith(mark[:n])),
            0,
        )
        before = self._held[: len(self._held) - size]
        return size + len(before) - len(before.rstrip())

    def _call(self, *, is_last: bool) -> tuple[str, list[ToolCall]] | None:
        end = self._syntax.end.strip()
        start = len(self._held) - len(self._held.lstrip())
        value, stop = _decoded(self._held, start)
        behind = self._held[stop:].lstrip()
        is_ended = stop > start and (is_last or behind.startswith(end)) and (end or is_last)
        if is_ended and (call := self._named(value)) is not None:
            self._held = behind.removeprefix(end)
            self._is_inside = False
            self._num_calls += 1
            return "", [call]
        if stop > start and not is_last and end.startswith(behind):
            return None  # the call is whole and its end is on the way
        at = self._held.find(end, stop) if end else -1
        if not is_last and (at < 0 or _is_cut(self._held, start)):
            return None
        # no call after all
        cut = len(self._held) if at < 0 else at + len(end)
        out = self._space + self._syntax.mark + self._held[:cut]
        self._held = self._held[cut:]
        self._is_inside, self._is_text = False, True
        return out, []

    def _named(self, value: dict[str, Any]) -> ToolCall | None:
        name = value.get("name")
        if not isinstance(name, str):
            return None
        try:
            return ToolCall(name, decode_arguments(value.get(self._syntax.arguments), "tool_call"))
        except UserError:
            return None


def _is_cut(text: str, start: int) -> bool:
    """Whether the JSON at a place of a text is right as far as it goes."""
    try:
        json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        is_word = any(word.startswith(rest) for word in ("true", "false", "null", "-"))
        return is_word or error.msg.startswith("Unterminated string")
    return False


def _decoded(text: str, start: int) -> tuple[dict[str, Any], int]:
    """The JSON object at a place of a text and where it ends; nothing and 0 where there is none."""
    try:
        value, stop = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return {}, 0
    return (cast("dict[str, Any]", value), stop) if isinstance(value, dict) else ({}, 0)
