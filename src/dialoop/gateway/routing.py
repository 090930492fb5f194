"""Which engine is asked: pure choice by load, by conversation, or in turn.

Least loaded: the power of two choices (Mitzenmacher 2001). Affinity: rendezvous hashing (Thaler and
Ravishankar 1998) of what a conversation begins with, with a bound on load (Mirrokni, Thorup and
Zadimoghaddam 2018): every worker, and a worker after its restart, chooses the same engine without a
word between them, an engine that leaves moves only its own conversations, and a busy one sheds.
"""

from __future__ import annotations

import zlib
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from dialoop.gateway.call import as_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

_BOUND = 1.25
"""A conversation leaves its engine when that has this many times the mean load ..."""
_SLACK = 4
"""... and so many requests more."""
_HEAD_CHARS = 2048


class Loaded(Protocol):
    """What can be chosen."""

    @property
    def label(self) -> str:
        """Its name."""
        ...

    @property
    def load(self) -> float:
        """Open requests."""
        ...


T = TypeVar("T", bound=Loaded)


def least_loaded(candidates: Sequence[T], random: Random) -> T:
    """The less loaded of two taken at random."""
    if len(candidates) == 1:
        return candidates[0]
    first, second = random.sample(candidates, 2)
    return first if first.load <= second.load else second


def by_affinity(candidates: Sequence[T], key: int, extra: float = 0.0) -> T:
    """The conversation's own engine, or the next of its order when that is overloaded.

    Args:
        candidates: at least one.
        key: of the conversation.
        extra: load to add to the mean, for places that are being taken.
    """
    if len(candidates) == 1:
        return candidates[0]
    ordered = sorted(candidates, key=lambda one: _score(one.label, key), reverse=True)
    mean = (sum(one.load for one in candidates) + extra) / len(candidates)
    bound = mean * _BOUND + _SLACK
    return next((one for one in ordered if one.load <= bound), ordered[0])


def pick_weighted(weights: Sequence[float], key: int) -> int:
    """Which of several weights a conversation falls into; the same one always."""
    point = _score("version", key) / 2**64 * sum(weights)
    for number, weight in enumerate(weights):
        point -= weight
        if point < 0 and weight:
            return number
    return max(range(len(weights)), key=lambda n: weights[n])


def conversation_key(body: dict[str, Any], session: str | None) -> int | None:
    """A number for what a conversation begins with; None where nothing tells it from others.

    All turns of a dialogue share its system message and its first user message, which is also what
    an engine's prefix cache keeps. A name of the conversation goes before both.

    Args:
        body: a request.
        session: the conversation's id, where the client gave one.
    """
    if session:
        return zlib.crc32(session.encode("utf-8", "replace"))
    named = body.get("prompt_cache_key")
    if isinstance(named, str):
        return zlib.crc32(named.encode("utf-8", "replace"))
    messages = body.get("messages")
    if isinstance(messages, list):
        return _of_messages(cast("list[Any]", messages))
    text = body.get("prompt")
    if isinstance(text, str):
        return zlib.crc32(text[:_HEAD_CHARS].encode("utf-8", "replace"))
    return None


def _of_messages(messages: list[Any]) -> int | None:
    key = None
    for message in messages:
        found = as_object(message)
        content = found.get("content")
        for text in [content] if isinstance(content, str) else _part_texts(content):
            key = zlib.crc32(text[:_HEAD_CHARS].encode("utf-8", "replace"), key or 0)
        if found.get("role") == "user":
            break
    return key


def _part_texts(content: Any) -> Iterator[str]:
    """The texts and images of a message in parts."""
    for part in cast("list[Any]", content) if isinstance(content, list) else ():
        found = as_object(part)
        image = found.get("image_url")
        for value in (found.get("text"), image, as_object(image).get("url")):
            if isinstance(value, str):
                yield value


def _score(label: str, key: int) -> int:
    digest = blake2b(label.encode(), digest_size=8, key=key.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big")
