"""Which messages are sent: a pure function of the dialogue, the policy and the model's counter.

System messages, pinned facts, tools and the newest turns are always sent, or the request is refused
with the numbers. Turns are kept whole and newest first. What is left out is chosen by sums over
turns, in such a way that one more message never brings an older one back: with `drop` the longest
end that fits; with `summarize` turns are folded in one go until three fifths of their room are
used, so that the next requests begin with the same prompt. Then the prompt is counted as a whole,
and where sums were too low, more is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dialoop.gateway.context.turns import cut, digest, text_of
from dialoop.gateway.context.view import ContextPlan, Part, Summary
from dialoop.gateway.context.wording import wording_of
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dialoop.gateway.context.counter import Counter
    from dialoop.gateway.context.policy import ContextPolicy
    from dialoop.gateway.context.view import Fate

Json = dict[str, Any]
FOLD_TO = 0.6
"""Share of the turns' room that is used after turns are folded."""
SMALLEST_SUMMARY = 24
"""Tokens below which no summary is worth writing."""
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
    # twice more for what the template writes around the dialogue, such as its own system message
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
        ApiError: 400 `context_length_exceeded` when what must be sent does not fit.
    """
    messages, window = dialogue.messages, window_of(policy, counter)
    system, turns = cut(messages)
    told = [messages[place] for place in system]
    base = counter.fixed(told, ())
    pinned = counter.fixed(with_note(told, _pins_note(dialogue)), ()) if dialogue.pins else base
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
    must = found.fixed + found.tokens_from(found.last_start)
    if must > hard_limit:
        raise too_long(found, found.last_start, must)
    return _with_start(found, policy, summary)


def plan(
    dialogue: Dialogue,
    policy: ContextPolicy,
    counter: Counter,
    summary: Summary | None = None,
    *,
    found: Outline | None = None,
    notes: Sequence[str] = (),
) -> ContextPlan:
    """Decide what is sent, and count it.

    Args:
        dialogue: what is asked.
        policy: what was set.
        counter: of the model that will answer.
        summary: of the dialogue's first turns; one that no longer belongs to them is not used.
        found: the outline, if it was made.
        notes: what to tell about how the summary was made.

    Raises:
        ApiError: 400 `context_length_exceeded` when what must be sent does not fit.
    """
    found = found or outline(dialogue, policy, counter, summary)
    summary = belonging(summary, found)
    if summary is not None:
        summary, told = _shortened(summary, found, counter)
        notes = [*notes, *told]
    start, summary, messages, tokens = _confirmed(found, summary, counter)
    parts = tuple(_parts(found, start, summary, counter, policy))
    return ContextPlan(
        messages=tuple(messages),
        parts=parts,
        tokens=tokens,
        answer_tokens=dialogue.max_tokens or found.window - tokens,
        window_tokens=found.window,
        is_exact=counter.is_exact,
        strategy=policy.strategy,
        summary=summary,
        notes=tuple(notes),
    )


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


def with_note(system: Sequence[Json], note: str) -> list[Json]:
    """System messages with a note behind the first, or with the note as the only one.

    Templates know one system message at the beginning; many refuse a second.
    """
    if not note:
        return list(system)
    if not system:
        return [{"role": "system", "content": note}]
    first, *others = system
    content = first.get("content")
    if isinstance(content, list):
        joined: Any = [*content, {"type": "text", "text": f"\n\n{note}"}]  # pyright: ignore[reportUnknownVariableType]
    else:
        joined = f"{content}\n\n{note}" if content else note
    return [{**first, "content": joined}, *others]


def belonging(summary: Summary | None, found: Outline) -> Summary | None:
    """The summary, if the dialogue still begins with the turns that it stands for."""
    if summary is None or not 0 < summary.num_turns <= found.last_start:
        return None
    before = found.messages_before(summary.num_turns)
    return summary if digest(before) == summary.digest else None


def _with_start(found: Outline, policy: ContextPolicy, summary: Summary | None) -> Outline:
    """Choose the first turn that is sent."""
    whole = found.fixed + found.tokens_from(0)
    if policy.strategy == "refuse":
        if whole > found.hard_limit:
            raise too_long(found, 0, whole)
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


def _shortened(
    summary: Summary, found: Outline, counter: Counter
) -> tuple[Summary | None, list[str]]:
    """As many of the summary's lines as there is room for, and what to tell about it."""
    if not found.summary_room:
        return None, ["the newest turns leave no room for the summary"]
    lines = summary.text.splitlines()
    fits, breaks = 0, len(lines) + 1
    if _summary_tokens(found, summary, counter) <= found.summary_room:
        return summary, []
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        shorter = replace(summary, text="\n".join(lines[:middle]))
        if _summary_tokens(found, shorter, counter) <= found.summary_room:
            fits = middle
        else:
            breaks = middle
    told = [f"the summary was cut to {fits} of {len(lines)} lines: it may have "
            f"{found.summary_room} tokens"]
    return (replace(summary, text="\n".join(lines[:fits])) if fits else None), told


def _confirmed(
    found: Outline, summary: Summary | None, counter: Counter
) -> tuple[int, Summary | None, list[Json], int]:
    """The cut whose prompt, counted as a whole, fits: start, summary, messages, tokens."""

    def count(start: int, own: Summary | None) -> tuple[list[Json], int]:
        messages = _composed(found, start, own)
        return messages, counter.whole(messages, found.dialogue.tools)

    start = breaks = found.start
    messages, tokens = count(start, summary)
    if tokens > found.limit and start < found.last_start:
        start = found.last_start
        while start - breaks > 1:
            middle = (start + breaks) // 2
            if count(middle, summary)[1] <= found.limit:
                start = middle
            else:
                breaks = middle
        messages, tokens = count(start, summary)
    if tokens > found.hard_limit and summary is not None:
        summary = None
        messages, tokens = count(start, None)
    if tokens > found.hard_limit:
        raise too_long(found, start, tokens)
    return start, summary, messages, tokens


def _composed(found: Outline, start: int, summary: Summary | None) -> list[Json]:
    """The messages to send, in their order, with notes behind the first system message."""
    messages = found.dialogue.messages
    kept = {place for turn in found.turns[start:] for place in turn}.union(found.system)
    sent = [message for place, message in enumerate(messages) if place in kept]
    note = _note(found.dialogue, summary)
    if not note:
        return sent
    if found.system and found.system[0] == min(kept):
        return with_note(sent, note)
    return [*with_note([], note), *sent]


def _note(dialogue: Dialogue, summary: Summary | None) -> str:
    notes = [_pins_note(dialogue)]
    if summary is not None:
        notes.append(f"{wording_of(summary.text).summary}\n{summary.text}")
    return "\n\n".join(note for note in notes if note)


def _pins_note(dialogue: Dialogue) -> str:
    if not dialogue.pins:
        return ""
    heading = wording_of("".join(dialogue.pins)).pins
    return "\n".join([heading, *(f"- {pin}" for pin in dialogue.pins)])


def _summary_tokens(found: Outline, summary: Summary, counter: Counter) -> int:
    told = [found.dialogue.messages[place] for place in found.system]
    noted = with_note(told, _note(found.dialogue, summary))
    return counter.fixed(noted, ()) - found.system_tokens - found.pins_tokens


def _parts(
    found: Outline, start: int, summary: Summary | None, counter: Counter, policy: ContextPolicy
) -> Iterator[Part]:
    """Every part, the messages in their order."""
    messages = found.dialogue.messages
    sizes = {place: counter.text(text_of(messages[place])) for place in found.system}
    around = found.system_tokens - sum(sizes.values())
    yield Part("template", around, "kept", "what the chat template writes around messages")
    if found.dialogue.pins:
        yield Part("pins", found.pins_tokens, "kept", "pinned facts are always sent")
    if found.dialogue.tools:
        yield Part("tools", found.tools_tokens, "kept", "tools are always sent")
    if summary is not None:
        size = _summary_tokens(found, summary, counter)
        yield Part("summary", size, "kept", f"stands for the first {summary.num_turns} turns")
    listed = {place: Part(f"messages[{place}]", size, "kept", "system messages are always sent")
              for place, size in sizes.items()}
    for number, (turn, counts) in enumerate(zip(found.turns, found.counts, strict=True)):
        fate, reason = _fate(number, found, start, summary, policy)
        for place, size in zip(turn, counts, strict=True):
            listed[place] = Part(f"messages[{place}]", size, fate, reason)
    yield from (listed[place] for place in sorted(listed))


def _fate(
    number: int, found: Outline, start: int, summary: Summary | None, policy: ContextPolicy
) -> tuple[Fate, str]:
    if number >= found.last_start and policy.strategy != "refuse":
        return "kept", f"the newest turns ({policy.keep_recent_turns}) are always sent"
    if number >= start:
        return "kept", "there is room for its turn"
    if summary is not None and number < summary.num_turns:
        return "summarized", f"older than turn {start}; the summary stands for it"
    if policy.strategy == "summarize":
        return "dropped", f"older than turn {start}, and there is no summary of it"
    return "dropped", f"older than turn {start}, where the window is full"
