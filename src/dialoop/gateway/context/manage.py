"""From a request to a plan: measures, has a summary written where turns were folded, plans."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import DialoopError
from dialoop.gateway.context.estimate import EstimateCounter
from dialoop.gateway.context.exact import TemplateCounter
from dialoop.gateway.context.facts import KeyFacts
from dialoop.gateway.context.images import fixed_tokens, internvl_tokens
from dialoop.gateway.context.outline import belonging, is_surely_within, outline, window_of
from dialoop.gateway.context.plan import plan
from dialoop.gateway.context.recent import Recent
from dialoop.gateway.context.summarize import Fold
from dialoop.gateway.context.turns import digest, text_of
from dialoop.gateway.context.view import Summary
from dialoop.gateway.context.wording import wording_of
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.template import Template
    from dialoop.gateway.context.counter import Counter
    from dialoop.gateway.context.outline import Dialogue, Outline
    from dialoop.gateway.context.policy import ContextPolicy
    from dialoop.gateway.context.summarize import Summarizer
    from dialoop.gateway.context.view import ContextPlan

Json = dict[str, Any]
LINE_TOKENS = 8
"""Tokens that the note around a summary may have beside its heading."""


def counter_for(
    policy: ContextPolicy, template: Template | None, window_tokens: int | None = None
) -> Counter:
    """The counter of a model, as the policy wants images counted.

    Args:
        policy: what was set.
        template: the model's; None where its tokenizer is not at hand.
        window_tokens: what its engine allows, where that is known.
    """
    rule = internvl_tokens if policy.image_tokens is None else fixed_tokens(policy.image_tokens)
    if template is None:
        return EstimateCounter(window_tokens, image_tokens=rule)
    return TemplateCounter(template, window_tokens=window_tokens, image_tokens=rule)


class ContextManager:
    """Plans what one model is sent.

    Args:
        policy: what was set.
        counter: of the model.
        summarizer: writes summaries.
        timeout_s: seconds that it may take.
        size: summaries that are remembered for dialogues that no store keeps.
    """

    def __init__(
        self,
        policy: ContextPolicy,
        counter: Counter,
        summarizer: Summarizer | None = None,
        *,
        timeout_s: float = 20.0,
        size: int = 1024,
    ) -> None:
        self._policy = policy
        self._counter = counter
        self._summarizer = summarizer or KeyFacts()
        self._timeout_s = timeout_s
        self._known: Recent[Summary] = Recent(size)

    def holds(self, messages: Sequence[Json], max_tokens: int | None) -> bool:
        """Whether a dialogue surely fits as it is; it costs next to nothing, so ask it first.

        Only for requests without tools and pins; one with images is planned always.

        Args:
            messages: in OpenAI's spelling.
            max_tokens: of the answer, where the request says it.
        """
        window = window_of(self._policy, self._counter)
        num_bytes = 0
        for message in messages:
            content = message.get("content")
            if not isinstance(content, str) or message.get("tool_calls"):
                return False
            num_bytes += len(content.encode("utf-8", "replace"))
            if num_bytes > window:
                return False
        room = max_tokens or self._policy.answer_room(window)
        return is_surely_within(num_bytes, len(messages), room, window)

    def learn(self, messages: Sequence[Json], prompt_tokens: int) -> None:
        """Take in what an engine counted, where tokens are estimates."""
        if isinstance(self._counter, EstimateCounter):
            self._counter.learn(messages, prompt_tokens)

    async def plan(self, dialogue: Dialogue, summary: Summary | None = None) -> ContextPlan:
        """What to send; `plan.summary` is to be stored with the conversation.

        A summary that fails costs no answer: the old one stays, and the plan says what was dropped.

        Args:
            dialogue: what the request asks.
            summary: stored with the conversation, if any.

        Raises:
            ApiError: what must be sent does not fit, or cannot be read.
        """
        found = outline(dialogue, self._policy, self._counter, summary)
        old = belonging(summary, found)
        notes: list[str] = []
        if found.start and found.summary_room and (old is None or old.num_turns < found.start):
            try:
                old = await self._fold(found, old)
            except (ApiError, DialoopError, TimeoutError, OSError, ValueError) as error:
                notes.append(f"the summary failed ({type(error).__name__}: {error})")
        return plan(dialogue, self._policy, self._counter, old, found=found, notes=notes)

    async def _fold(self, found: Outline, old: Summary | None) -> Summary:
        messages = found.messages_before(found.start)
        stamp = digest(messages)
        key = digest([found.summary_room], stamp)
        if known := self._known.get(key):
            return known
        heading = wording_of("".join(map(text_of, messages))).summary
        fold = Fold(
            messages=messages,
            num_old=len(found.messages_before(old.num_turns)) if old else 0,
            old=old.text if old else "",
            max_tokens=max(1, found.summary_room - self._counter.text(heading) - LINE_TOKENS),
            count=self._counter.text,
        )
        async with asyncio.timeout(self._timeout_s):
            text = await self._summarizer.summarize(fold)
        return self._known.put(key, Summary(text, found.start, stamp))
