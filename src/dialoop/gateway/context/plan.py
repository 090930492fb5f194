"""Which messages are sent: a pure function of the dialogue, the policy and the model's counter.

System messages, pinned facts, tools and the newest turns are always sent, or the request is refused
with the numbers. Turns are kept whole and newest first. Where the dialogue is cut is found by sums
(`outline`); then the prompt is counted as a whole, and where sums were too low, more is left out.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dialoop.gateway.context.notes import note, with_note
from dialoop.gateway.context.outline import Dialogue, Outline, belonging, outline, too_long
from dialoop.gateway.context.turns import text_of
from dialoop.gateway.context.view import ContextPlan, Part, Summary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dialoop.gateway.context.counter import Counter
    from dialoop.gateway.context.policy import ContextPolicy
    from dialoop.gateway.context.view import Fate

Json = dict[str, Any]
_SENTENCE = re.compile(
    r".+?(?:[\n.!?;\u3002\uff01\uff1f\uff1b]+(?=\s|[\u2e80-\u9fff])|\n|$)", re.DOTALL
)


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
    summary = belonging(summary, found) if policy.strategy == "summarize" else None
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


def _shortened(
    summary: Summary, found: Outline, counter: Counter
) -> tuple[Summary | None, list[str]]:
    """As many of the summary's sentences as there is room for, and what to tell about it."""
    if not found.summary_room:
        return None, ["the newest turns leave no room for the summary"]
    if _summary_tokens(found, summary, counter) <= found.summary_room:
        return summary, []
    sentences = _SENTENCE.findall(summary.text)
    fits, breaks = 0, len(sentences)
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        shorter = replace(summary, text="".join(sentences[:middle]).strip())
        if _summary_tokens(found, shorter, counter) <= found.summary_room:
            fits = middle
        else:
            breaks = middle
    told = (
        f"the summary was cut to {fits} of {len(sentences)} sentences: it may have "
        f"{found.summary_room} tokens"
    )
    text = "".join(sentences[:fits]).strip()
    return (replace(summary, text=text) if text else None), [told]


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
    text = note(found.dialogue.pins, summary.text if summary else "")
    if not text:
        return sent
    if found.system and found.system[0] == min(kept):
        return with_note(sent, text)
    return [*with_note([], text), *sent]


def _summary_tokens(found: Outline, summary: Summary, counter: Counter) -> int:
    told = [found.dialogue.messages[place] for place in found.system]
    noted = with_note(told, note(found.dialogue.pins, summary.text))
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
    listed = {
        place: Part(f"messages[{place}]", size, "kept", "system messages are always sent")
        for place, size in sizes.items()
    }
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
