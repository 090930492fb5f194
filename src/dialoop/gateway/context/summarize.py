"""Summaries of turns that are no longer sent: what to fold, by whom, and what a model is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dialoop.gateway.context.turns import text_of
from dialoop.gateway.context.wording import Wording, wording_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

Json = dict[str, Any]
_SHOWN = ("user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Fold:
    """What is to be summarised."""

    messages: Sequence[Json]
    """All messages that are no longer sent, the oldest first; no system messages."""
    num_old: int
    """How many of them `old` stands for."""
    old: str
    """The summary so far; empty when there is none."""
    max_tokens: int
    """Tokens that the new summary may have."""
    count: Callable[[str], int]
    """Tokens of a text."""


class Summarizer(Protocol):
    """Writes a summary of all that a fold holds."""

    async def summarize(self, fold: Fold) -> str:
        """The text, in lines; a longer one than `max_tokens` is cut.

        Raises:
            ApiError, DialoopError, TimeoutError, OSError: it cannot; the old summary stays.
        """
        ...


@dataclass(frozen=True, slots=True)
class AskModel:
    """Asks a model for the summary: the old one and the turns since become the new one."""

    ask: Callable[[list[Json], int], Awaitable[str]]
    """Sends messages to a model and returns its text; takes the messages and the most tokens."""
    prompt_tokens: int = 2048
    """Tokens of turns in one question; more are asked about in several, one after another."""

    async def summarize(self, fold: Fold) -> str:
        """The model's notes.

        Raises:
            ApiError, DialoopError, TimeoutError, OSError: what `ask` raises.
            ValueError: the model wrote nothing.
        """
        notes = fold.old
        for lines in _batches(fold, self.prompt_tokens):
            messages = prompt(notes, lines, fold.max_tokens)
            notes = (await self.ask(messages, fold.max_tokens)).strip()
            if not notes:
                raise ValueError("the model wrote an empty summary")
        return notes


def prompt(old: str, lines: Sequence[str], max_tokens: int) -> list[Json]:
    """What a model is asked for new notes.

    Args:
        old: the notes so far.
        lines: the turns since, as `transcript` writes them.
        max_tokens: tokens that the notes may have.
    """
    turns = "\n".join(lines)
    wording = wording_of(turns)
    words = max(10, int(max_tokens / wording.tokens_a_word))
    asked = wording.ask.format(words=words, old=old or wording.nothing, turns=turns)
    return [{"role": "user", "content": asked}]


def transcript(messages: Sequence[Json]) -> Iterator[str]:
    """A line for every message that says something: who, and what."""
    wording = wording_of("".join(map(text_of, messages)))
    for message in messages:
        if message["role"] in _SHOWN and (text := text_of(message).strip()):
            yield f"{speaker(message, wording)}: {text}"


def speaker(message: Json, wording: Wording) -> str:
    """Who speaks, in the dialogue's language."""
    return {"user": wording.user, "tool": wording.tool}.get(message["role"], wording.assistant)


def _batches(fold: Fold, max_tokens: int) -> Iterator[list[str]]:
    """The lines since the old summary, in portions; a line longer than one is cut in pieces."""
    batch: list[str] = []
    used = 0
    for line in transcript(fold.messages[fold.num_old :]):
        for piece in _pieces(line, max_tokens, fold.count):
            size = fold.count(piece)
            if batch and used + size > max_tokens:
                yield batch
                batch, used = [], 0
            batch.append(piece)
            used += size
    if batch:
        yield batch


def _pieces(line: str, max_tokens: int, count: Callable[[str], int]) -> Iterator[str]:
    if len(line) < 2 or count(line) <= max_tokens:
        yield line
        return
    middle = len(line) // 2
    yield from _pieces(line[:middle], max_tokens, count)
    yield from _pieces(line[middle:], max_tokens, count)
