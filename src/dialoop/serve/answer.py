"""One choice of an answer as it comes: text, tool calls, log-probabilities, and why it ended."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoop.chat.calls import CallReader
from dialoop.engines.text import stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from dialoop.chat.message import ToolCall
    from dialoop.chat.tokenizer import Tokenizer
    from dialoop.engines import Engine
    from dialoop.serve.openai import Generation
    from dialoop.serve.writer import Told


@dataclass(frozen=True, slots=True)
class Part:
    """What came since the last part of the same choice."""

    text: str
    num_tokens: int
    """Tokens generated so far."""
    calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    """Set on the last part only."""
    logprobs: Told = ()


async def parts(
    engine: Engine, tokenizer: Tokenizer, generation: Generation, number: int
) -> AsyncGenerator[Part, None]:
    """Answer one choice of a request; closing the generator early aborts it.

    Raises:
        UserError: the engine cannot do what is asked.
        UpstreamError: the engine failed; what was yielded before is then not a whole answer.
    """
    request, syntax = generation.requests[number], generation.syntax
    reader = CallReader(syntax) if syntax else None
    if reader:
        reader.push(generation.opening)
    # the mark of a call may be made of special tokens
    shows_special = syntax is not None and not tokenizer.special_ids.isdisjoint(
        tokenizer.encode(syntax.mark)
    )
    num_calls = 0
    pieces = stream(engine, tokenizer, request, generation.stops, skip_special=not shows_special)
    async with aclosing(pieces):
        async for piece in pieces:
            if reader is None:
                yield Part(piece.text, piece.num_tokens, (), piece.finish, piece.logprobs)
                continue
            text, calls = reader.push(piece.text)
            if piece.finish:
                last, more = reader.finish()
                text, calls = text + last, (*calls, *more)
            is_cut = generation.is_single and len(calls) + num_calls > 0
            calls = calls[:1] if is_cut else calls
            num_calls += len(calls)
            finish = piece.finish
            if num_calls and (is_cut or finish == "stop"):
                finish = "tool_calls"
            if text or calls or finish or piece.logprobs:
                yield Part(text, piece.num_tokens, calls, finish, piece.logprobs)
            if finish:
                return
