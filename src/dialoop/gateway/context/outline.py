"""A dialogue measured, and where it is cut so that the rest fits: sums over turns, no rendering.

One more message never brings an older one back: with `drop` the longest end that fits is sent;
with `summarize` turns are folded in one go until three fifths of their room are used, so that the
next requests begin with the same prompt, which engines keep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dialoop.gateway.context.notes import pins_note, with_note
from dialoop.gateway.context.turns import cut, digest
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dialoop.gateway.context.counter import Counter
    from dialoop.gateway.context.policy import ContextPolicy
    from dialoop.gateway.context.view import Summary

Json = dict[str, Any]
FOLD_TO = 0.6
"""Share of the turns' room that is used after turns are folded."""
SMALLEST_SUMMARY = 48
"""Tokens below which no summary is worth writing: its heading takes half of them."""
MESSAGE_BYTES = 64
"""What templates write around a message, at most, in bytes."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a request asks to be sent."""

    messages: Sequence[Json]
    """In OpenAI's spelling."""
    tools: Sequence[Json] = ()
    pins: Sequence[str] = ()
    """Facts that are always sent."""
    max_tokens: int | None = None
    """Of the answer, where the request says it."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A dialogue measured, and where it is cut; made by `outline`."""

    dialogue: Dialogue
    system: list[int]
    """Places of system messages."""
    turns: list[list[int]]
    """Places of the messages of each turn."""
    counts: list[tuple[int, ...]]
    """Tokens of the messages of each turn."""
    system_tokens: int
    """System messages, and what the template writes around a dialogue."""
    pins_tokens: int
    tools_tokens: int
    window: int
    limit: int
    """Tokens that the prompt may have so that the preferred room for the answer stays."""
    hard_limit: int
    """Tokens that it may have at all."""
    last_start: int
    """The last place where the turns that are sent may begin."""
    start: int
    """The first turn that is sent."""
    summary_room: int
    """Tokens that a summary of the turns before it may have; 0 where none is wanted."""

    @property
    def fixed(self) -> int:
        """Tokens of what is always sent, the newest turns apart."""
        return self.system_tokens + self.pins_tokens + self.tools_tokens

    def tokens_from(self, start: int) -> int:
        """Tokens of the turns from one on, summed up."""
        return sum(map(sum, self.counts[start:]))

    def messages_before(self, start: int) -> list[Json]:
        """The messages of the turns before one."""
        places = (place for turn in self.turns[:start] for place in turn)
        return [self.dialogue.messages[place] for place in places]


def is_surely_within(num_bytes: int, num_messages: int, max_tokens: int, window: int) -> bool:
    """Whether a dialogue of plain text fits whatever its tokens are: each has a byte or more.

    For requests without tools, pins and images; it costs nothing, so ask it before planning.

    Args:
        num_bytes: of all texts, in UTF-8.
        num_messages: of the dialogue.
        max_tokens: room for the answer.
        window: prompt and answer together.
    """
    # eight messages more for what the template writes once, such as a system message of its own
    return num_bytes + MESSAGE_BYTES * (num_messages + 8) + max_tokens <= window


def window_of(policy: ContextPolicy, counter: Counter) -> int:
    """Tokens for prompt and answer together.

    Raises:
        ApiError: neither the policy nor the model says.
    """
    window = policy.window_tokens or counter.window_tokens
    if window is None:
        raise ApiError(
            500, "the model does not say how long its window is: set `context.window_tokens`"
        )
    return window


def outline(
    dialogue: Dialogue, policy: ContextPolicy, counter: Counter, summary: Summary | None = None
) -> Outline:
    """Measure a dialogue and find where it is cut.

    Args:
        dialogue: what is asked.
        policy: what was set.
        counter: of the model that will answer.
        summary: what was made before; the turns that it stands for stay out.

    Raises:
        ApiError: the messages cannot be read.
    """
    messages, window = dialogue.messages, window_of(policy, counter)
    system, turns = cut(messages)
    told = [messages[place] for place in system]
    base = counter.fixed(told, ())
    pinned = counter.fixed(with_note(told, pins_note(dialogue.pins)), ()) if dialogue.pins else base
    with_tools = counter.fixed(told, dialogue.tools) if dialogue.tools else base
    hard_limit = window - (dialogue.max_tokens or 1)
    preferred = dialogue.max_tokens or policy.answer_room(window)
    found = Outline(
        dialogue=dialogue,
        system=system,
        turns=turns,
        counts=[counter.turn([messages[place] for place in turn]) for turn in turns],
        system_tokens=base,
        pins_tokens=pinned - base,
        tools_tokens=with_tools - base,
        window=window,
        limit=window - preferred,
        hard_limit=hard_limit,
        last_start=max(0, len(turns) - policy.keep_recent_turns),
        start=0,
        summary_room=0,
    )
    return _with_start(found, policy, summary)


def too_long(found: Outline, start: int, tokens: int) -> ApiError:
    """The refusal, with the numbers by part.

    Args:
        found: the measured dialogue.
        start: the first turn that would have to be sent.
        tokens: what has to be sent.
    """
    size, place = max(_sizes(found, start), default=(0, 0))
    answer = found.window - found.hard_limit
    listed = (
        f"system {found.system_tokens}, pinned facts {found.pins_tokens}, "
        f"tools {found.tools_tokens}, turns {found.tokens_from(start)} "
        f"(the longest message, messages[{place}], {size}), answer {answer}"
    )
    return ApiError(
        400,
        f"This model's maximum context length is {found.window} tokens. What must be sent takes "
        f"{tokens + answer}: {listed}. Shorten one of these, or ask for a shorter answer.",
        param="messages",
        code="context_length_exceeded",
    )


def belonging(summary: Summary | None, found: Outline) -> Summary | None:
    """The summary, if the dialogue still begins with the turns that it stands for."""
    if summary is None or not 0 < summary.num_turns <= found.last_start:
        return None
    before = found.messages_before(summary.num_turns)
    return summary if digest(before) == summary.digest else None


def _with_start(found: Outline, policy: ContextPolicy, summary: Summary | None) -> Outline:
    """Choose the first turn that is sent."""
    if policy.strategy == "refuse":
        return replace(found, limit=found.hard_limit, last_start=0)
    room = policy.summary_room(found.window)
    history = found.limit - found.fixed
    costs = [sum(counts) for counts in found.counts]
    if policy.strategy == "drop":
        start = _longest_end(costs, history, found.last_start)
    else:
        keep = len(costs) - found.last_start
        start = _folded(costs, history, history - room, keep)
        if own := belonging(summary, found):
            start = max(start, min(own.num_turns, found.last_start))
    if start == 0 or not room:
        return replace(found, start=start)
    left = max(found.limit, found.fixed) - found.fixed - found.tokens_from(start)
    room = min(room, left)
    return replace(found, start=start, summary_room=room if room >= SMALLEST_SUMMARY else 0)


def _longest_end(costs: list[int], room: int, last_start: int) -> int:
    start = last_start
    used = sum(costs[start:])
    while start and used + costs[start - 1] <= room:
        start -= 1
        used += costs[start]
    return start


def _folded(costs: list[int], first_room: int, room: int, keep: int) -> int:
    """Where the dialogue begins after it grew turn by turn, and was folded whenever it was full.

    Args:
        costs: tokens of each turn.
        first_room: tokens for turns as long as nothing is folded.
        room: tokens for turns beside a summary.
        keep: turns at the end that are never folded.
    """
    start = used = 0
    for place, cost in enumerate(costs):
        used += cost
        if used <= (room if start else first_room):
            continue
        while used > FOLD_TO * room and start < place + 1 - keep:
            used -= costs[start]
            start += 1
    return start


def _sizes(found: Outline, start: int) -> Iterator[tuple[int, int]]:
    """Tokens and place of the messages of the turns from one on."""
    for turn, counts in zip(found.turns[start:], found.counts[start:], strict=True):
        yield from zip(counts, turn, strict=True)
