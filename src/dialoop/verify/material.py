"""The dialogues that every form of a model is asked: those of our own, and the user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoop.chat.message import (
    Message,
    Tool,
    ToolCall,
    from_openai,
    message,
    tool_from_openai,
)
from dialoop.core.errors import UserError
from dialoop.data.read import Record, read

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What is asked."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


_PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER = Tool("get_weather", "The weather in a city.", _PLACE)

OWN = (
    Dialogue("question", (message("user", "Name three colours of the rainbow."),)),
    Dialogue(
        "system",
        (
            message("system", "You answer in one short sentence."),
            message("user", "Why is it dark?"),
        ),
    ),
    Dialogue(
        "turns",
        (
            message("user", "My name is Ann and I have two cats."),
            message("assistant", "Nice to meet you, Ann."),
            message("user", "Their names are Tom and Kit."),
            message("assistant", "Lovely names."),
            message("user", "How many cats do I have?"),
        ),
    ),
    Dialogue("Chinese", (message("user", "你好，请用一句话介绍一下北京。"),)),  # noqa: RUF001
    Dialogue("spaces", (message("user", "  What does this do?\n\n```python\nx  = 1\n```\n"),)),
    Dialogue("tools", (message("user", "What is the weather in Oslo?"),), (_WEATHER,)),
    Dialogue(
        "tool result",
        (
            message("user", "What is the weather in Oslo?"),
            Message("assistant", (), (ToolCall("get_weather", {"city": "Oslo"}, "call_1"),)),
            message("tool", '{"sky": "clear", "celsius": 4}', tool_call_id="call_1"),
        ),
        (_WEATHER,),
    ),
)


def load(files: Iterable[Path]) -> list[Dialogue]:
    """Our own dialogues and those of some files.

    Raises:
        UserError: a file is missing, or a record is no dialogue that waits for an answer.
    """
    found = list(OWN)
    for file in files:
        for item in read(file):
            where = f"dialogues: `{file}`"
            if not isinstance(item, Record) or not isinstance(item.value, dict):
                raise UserError(f"{where} has a record that is no object", hint="mend the file")
            where = f"dialogues: {item.origin}"
            raw = item.value.get("messages") or []
            turns = tuple(from_openai(m, f"{where}: messages[{n}]") for n, m in enumerate(raw))
            if not turns or turns[-1].role not in {"user", "tool"}:
                raise UserError(
                    f"{where}: no `messages` that wait for an answer",
                    hint="let them end with the user",
                )
            tools = tuple(tool_from_openai(t, where) for t in item.value.get("tools") or ())
            found.append(Dialogue(str(item.origin), turns, tools))
    return found
