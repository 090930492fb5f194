"""Answers as text: decoding, stop strings across token borders, reasons to end, usage."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from dialoop.chat.tokenizer import Tokenizer
    from dialoop.engines import Delta, Engine, FinishReason, Request, TokenLogprob


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is certain: it cannot turn out to be the beginning of a stop string."""

    text: str
    num_tokens: int
    """Tokens generated so far."""
    finish: FinishReason | None = None
    """Set on the last piece only, which may have no text."""
    logprobs: tuple[tuple[int, TokenLogprob], ...] = ()
    """Its tokens, where log-probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    num_prompt_tokens: int
    num_tokens: int
    finish: FinishReason


class StopFilter:
    """Passes text through up to the first stop string.

    Args:
        stops: strings that end the text; they are not part of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The text that is certain after this much more."""
        if self.is_stopped:
            return ""
        self._held += text
        at = min((i for s in self._stops if (i := self._held.find(s)) >= 0), default=-1)
        if at >= 0:
            self.is_stopped = True
            cut, self._held = at, self._held[:at]
        else:
            cut = len(self._held) - self._num_doubtful()
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        out, self._held = self._held, ""
        return out

    def _num_doubtful(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0


async def stream(
    engine: Engine,
    tokenizer: Tokenizer,
    request: Request,
    stops: Sequence[str] = (),
    *,
    skip_special: bool = True,
) -> AsyncGenerator[Piece, None]:
    """Answer a request as text; closing the generator early aborts it.

    Args:
        engine: started.
        tokenizer: the model's own.
        request: what to answer.
        stops: strings that end the answer; they are not part of it.
        skip_special: leave special tokens out of the text.

    Raises:
        UserError: the prompt is too long.
        UpstreamError: the engine failed; what was yielded before is then not a whole answer.
    """
    decoder, stop = tokenizer.stream(skip_special=skip_special), StopFilter(stops)
    count = 0
    told: list[tuple[int, TokenLogprob]] = []
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            count += len(delta.ids)
            told += _told(delta)
            text = stop.push(decoder.push(*delta.ids))
            if delta.finish and not stop.is_stopped:
                text += stop.push(decoder.finish())
            if stop.is_stopped:
                yield Piece(text, count, "stop", _within(told, text, tokenizer))
                return
            if delta.finish:
                yield Piece(text + stop.finish(), count, delta.finish, tuple(told))
            elif text:
                yield Piece(text, count, None, tuple(told))
                told = []


def _told(delta: Delta) -> list[tuple[int, TokenLogprob]]:
    return list(zip(delta.ids, delta.logprobs, strict=True)) if delta.logprobs else []


def _within(
    told: list[tuple[int, TokenLogprob]], text: str, tokenizer: Tokenizer
) -> tuple[tuple[int, TokenLogprob], ...]:
    """The tokens that begin before the end of the text: those of a stop string are left out."""
    kept: list[tuple[int, TokenLogprob]] = []
    length = 0
    for item in told:
        if length >= len(text):
            break
        kept.append(item)
        length += len(tokenizer.decode([item[0]]))
    return tuple(kept)


async def complete(
    engine: Engine, tokenizer: Tokenizer, request: Request, stops: Sequence[str] = ()
) -> Answer:
    """The whole answer to a request."""
    texts: list[str] = []
    async with aclosing(stream(engine, tokenizer, request, stops)) as pieces:
        async for piece in pieces:
            texts.append(piece.text)
            if piece.finish:
                prompt = len(request.prompt_ids)
                return Answer("".join(texts), prompt, piece.num_tokens, piece.finish)
    raise AssertionError("an engine ended a stream without a reason")
