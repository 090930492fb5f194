"""Exact counts: the model's own tokenizer over what its own chat template writes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dialoop.chat.message import Text, from_openai, tool_from_openai
from dialoop.core.errors import UserError
from dialoop.gateway.context.counter import PROBE
from dialoop.gateway.context.images import internvl_tokens
from dialoop.gateway.context.recent import Recent
from dialoop.gateway.context.turns import digest, images_of
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dialoop.chat.message import Message
    from dialoop.chat.template import Template

Json = dict[str, Any]
_DIALOGUE: tuple[Json, Json] = (PROBE, {"role": "assistant", "content": "hello"})


class TemplateCounter:
    """Counts what the template writes.

    A turn is rendered by itself, once, and remembered by its digest; the sum over turns is what the
    plan is searched with. Templates write a turn that stands alone as long as, or longer than,
    within a dialogue, so that the sum is not below the truth; `whole` renders the prompt itself,
    and encodes only the messages that it has not seen.

    Args:
        template: the model's.
        window_tokens: what the engine allows; the checkpoint's positions unless given.
        image_tokens: the rule for images.
        size: turns, and pieces of text, that are remembered.
    """

    is_exact = True

    def __init__(
        self,
        template: Template,
        *,
        window_tokens: int | None = None,
        image_tokens: Callable[[str], int] = internvl_tokens,
        size: int = 16384,
    ) -> None:
        self._template = template
        self._image_tokens = image_tokens
        self.window_tokens = window_tokens or template.tokenizer.max_length
        self._pieces: Recent[int] = Recent(size)
        self._turns: Recent[tuple[int, ...]] = Recent(size)
        self._totals: Recent[int] = Recent(size)

    def text(self, text: str) -> int:
        """Tokens of plain text."""
        return self._piece(text)

    def turn(self, messages: Sequence[Json]) -> tuple[int, ...]:
        """Tokens of each message of a turn.

        A message that the template does not write as a last one is counted with the next.

        Raises:
            ApiError: the messages cannot be read, or the template refuses them.
        """
        key = digest(messages)
        return self._turns.get(key) or self._turns.put(key, self._count_turn(messages))

    def fixed(self, system: Sequence[Json], tools: Sequence[Json]) -> int:
        """Tokens of all that is not a turn.

        Raises:
            ApiError: as `turn`.
        """
        probe = self.turn([PROBE])[0]
        return self.whole([*system, PROBE], tools) - probe

    def whole(self, messages: Sequence[Json], tools: Sequence[Json]) -> int:
        """Tokens of the prompt, images included.

        Raises:
            ApiError: as `turn`.
        """
        key = digest(messages, digest(tools))
        known = self._totals.get(key)
        if known is not None:
            return known
        try:
            called = [tool_from_openai(tool, f"tools[{n}]") for n, tool in enumerate(tools)]
            text = self._template.prompt(_read(messages), called)
        except UserError as error:
            raise _refused(error) from error
        return self._totals.put(key, self._encoded(text) + self._images(messages))

    @cached_property
    def _preamble(self) -> int:
        """Tokens that the template writes once, before all: bos, a system message of its own."""
        twice = self._open([*_DIALOGUE, *_DIALOGUE])
        return max(0, 2 * self._open(_DIALOGUE) - twice)

    def _count_turn(self, messages: Sequence[Json]) -> tuple[int, ...]:
        counts: list[int] = []
        before = self._preamble
        for end in range(1, len(messages) + 1):
            try:
                total = self._open(messages[:end])
            except ApiError:
                if end == len(messages):
                    raise
                total = before
            counts.append(max(0, total - before))
            before = max(before, total)
        return tuple(counts)

    def _open(self, messages: Sequence[Json]) -> int:
        """Tokens of a dialogue that nothing is asked after."""
        try:
            text = self._template.dialogue(_read(messages))
        except UserError as error:
            raise _refused(error) from error
        return self._encoded(text) + self._images(messages)

    def _encoded(self, text: str) -> int:
        cuts = self._template.cuts
        return sum(map(self._piece, cuts.split(text) if cuts else [text]))

    def _piece(self, text: str) -> int:
        if not text:
            return 0
        key = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        known = self._pieces.get(key)
        if known is not None:
            return known
        return self._pieces.put(key, len(self._template.tokenizer.encode(text)))

    def _images(self, messages: Sequence[Json]) -> int:
        return sum(self._image_tokens(url) for item in messages for url in images_of(item))


def _read(messages: Sequence[Json]) -> list[Message]:
    """Messages without their images, which are counted apart."""
    read = [from_openai(item, f"messages[{n}]") for n, item in enumerate(messages)]
    return [
        replace(item, parts=tuple(part for part in item.parts if isinstance(part, Text)))
        if item.images
        else item
        for item in read
    ]


def _refused(error: UserError) -> ApiError:
    return ApiError(400, Exception.__str__(error), param="messages")
