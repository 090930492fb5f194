"""What layouts of dialogues may carry beside the turns: worse answers, labels, tools, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dialoop.data import turns
from dialoop.data.columns import RecordError
from dialoop.data.sample import Sample

if TYPE_CHECKING:
    from dialoop.chat.message import Message
    from dialoop.data.columns import Row


def dialogue(row: Row, messages: tuple[Message, ...]) -> Sample:
    """The sample of a dialogue and of the columns beside it.

    Raises:
        RecordError: a column cannot be read, or nothing can be learned from the dialogue.
    """
    messages = turns.with_images(row, turns.with_system(row, messages))
    check(messages)
    rejected = _worse(row, messages)
    label = _label(row)
    tools = turns.read_tools(row.field("tools"))
    return Sample(messages=messages, tools=tools, rejected=rejected, label=label, extra=row.extra())


def preference(
    row: Row, messages: tuple[Message, ...], endings: tuple[tuple[Message, ...], ...]
) -> Sample:
    """The sample of a better dialogue and the worse endings, with the columns beside them."""
    messages = turns.with_images(row, turns.with_system(row, messages))
    tools = turns.read_tools(row.field("tools"))
    check(messages)
    if messages[-1].role != "assistant":
        raise RecordError("empty answer", "in the chosen dialogue")
    return Sample(messages=messages, tools=tools, rejected=endings, extra=row.extra())


def instruction(row: Row) -> tuple[Message, ...]:
    """The question of an instruction and what it applies to, a line break between."""
    parts = [turns.body(row.field(name)) for name in ("instruction", "input")]
    return turns.question("\n".join(part for part in parts if part.strip()))


def is_ranking(row: Row) -> bool:
    """Whether the answer is a list of several texts."""
    value = row.peek("output") if row.has("output") else row.peek("response")
    return isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value)


def check(messages: tuple[Message, ...]) -> None:
    """Refuse a dialogue that nothing can be learned from.

    Raises:
        RecordError: no turns, no question, or an empty answer.
    """
    if not messages:
        raise RecordError("no turns")
    if all(item.role == "system" for item in messages):
        raise RecordError("only a system prompt")
    for item in messages:
        if item.role == "assistant" and not (item.text.strip() or item.images or item.tool_calls):
            raise RecordError("empty answer")
    if messages[-1].role == "system":
        raise RecordError("ends on a system turn")


def pair(
    prompt: tuple[Message, ...], chosen: Any, rejected: Any
) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]:
    """(dialogue with its chosen answer, worse endings) of a prompt and its answers."""
    messages = (*prompt, *turns.answer(chosen))
    worse = rejected if _is_several(rejected) else [rejected]
    return messages, tuple(ending(messages, (*prompt, *turns.answer(item))) for item in worse)


def ending(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    """The part of a worse dialogue behind the last user turn that both have in common.

    Raises:
        RecordError: they are the same, have no turn in common, or do not take equally many turns.
    """
    if chosen == rejected:
        raise RecordError("chosen and rejected are the same")
    common = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        common += 1
    while common and chosen[common - 1].role not in {"user", "tool"}:
        common -= 1
    if common == 0:
        raise RecordError("chosen and rejected answer different questions")
    tail = rejected[common:]
    if not tail or tail[-1].role != "assistant":
        raise RecordError("empty answer", "in the rejected dialogue")
    if sum(m.role == "user" for m in tail) != sum(m.role == "user" for m in chosen[common:]):
        raise RecordError("chosen and rejected part before the last question")
    check(tail)
    return tail


def _is_several(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not turns.is_turns(value)


def _worse(row: Row, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], ...]:
    """Endings from `rejected_response`, `rejected_messages`, or our own `rejected`."""
    if row.has("rejected_response"):
        prompt = _prompt(messages)
        value = row.field("rejected_response")
        several = value if _is_several(value) else [value]
        return tuple(ending(messages, (*prompt, *turns.answer(item))) for item in several)
    if row.has("rejected_messages"):
        value = row.field("rejected_messages")
        several = value if _is_several(value) else [value]
        return tuple(_full_ending(messages, turns.read_turns(item)) for item in several)
    if row.has("rejected"):
        value = row.field("rejected")
        several = value if _is_several(value) else [value]
        return tuple(turns.answer(item) for item in several)
    return ()


def _full_ending(messages: tuple[Message, ...], worse: tuple[Message, ...]) -> tuple[Message, ...]:
    """A worse dialogue may leave out the system prompt that came from its own column."""
    if messages[0].role == "system" and worse and worse[0].role != "system":
        worse = (messages[0], *worse)
    return ending(messages, worse)


def _prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for number in range(len(messages) - 1, -1, -1):
        if messages[number].role in {"user", "tool"}:
            return messages[: number + 1]
    raise RecordError("no question")


def _label(row: Row) -> bool | None:
    """The label when it is a yes or no; any other stays among the extra columns."""
    value = row.peek("label")
    named_tag = "kto_tag" in row.names("label")
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        value = value.strip().lower() == "true"
    if isinstance(value, bool) or (named_tag and value in (0, 1)):
        row.field("label")
        return bool(value)
    return None
