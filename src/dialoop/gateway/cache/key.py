"""Which requests have one answer: the key of an answer, and whether it may be kept at all.

Everything that a request says is part of its key but for `_SAME_ANSWER`, so that a field which is
not known here can cost a hit and never give a wrong answer. JSON is compared as it was written:
`0` and `0.0`, or a null and a missing field, are different.

Not kept: answers that are drawn by chance (neither temperature 0 nor a seed), several choices,
requests that offer tools (a call that is repeated is done again, and only its owner knows whether
that does harm; calls carry ids, too), and requests that point at content elsewhere (images by URL,
files, web search), which may have changed.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from hashlib import blake2b
from typing import Any, Literal, cast

import orjson

from dialoop.gateway.cache import tenant_digest

Json = dict[str, Any]
Scope = Literal["key", "tenant", "conversation"]

_SAME_ANSWER = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
    }
)
"""Fields of which the answer does not depend: how it is sent, and information."""
_TEXT_PARTS = frozenset({"text", "refusal"})
_ELSEWHERE = ("web_search_options", "audio")


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose answer it is and what makes it, beside the request's own fields."""

    tenant: str
    scope: Scope
    """Who may be given it."""
    owner: str
    """The id of the key or conversation; empty where the scope is the tenant."""
    endpoint: str
    """`chat`, `completions`, ...: equal fields mean different answers there."""
    model: str
    """Its public name."""
    release: str
    """Of all that answers: weights, adapter, engine, system prompt, knowledge base."""
    policy: str
    """The version of words and guards that the answer went through."""


def cache_key(origin: Origin, body: Json) -> bytes:
    """The key of a request's answer: 16 bytes of the tenant, 32 of everything.

    Args:
        origin: whose answer it is.
        body: as it goes to the engine, with the messages of the conversation in it.
    """
    kept = {name: value for name, value in body.items() if name not in _SAME_ANSWER}
    return tenant_digest(origin.tenant) + _digest(origin, kept, b"dialoop.answer")


def group_key(origin: Origin, body: Json) -> tuple[bytes, str] | None:
    """The key of all that a chat request says but for its last message, and the text of that.

    None where the last message is not a text of the user.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    last = cast("list[Any]", messages)[-1]
    if not isinstance(last, dict):
        return None
    said = cast("Json", last)
    text = said.get("content")
    if said.get("role") != "user" or not isinstance(text, str):
        return None
    kept = {name: value for name, value in body.items() if name not in _SAME_ANSWER}
    rest = {name: value for name, value in said.items() if name != "content"}
    kept["messages"] = [*cast("list[Any]", messages)[:-1], rest]
    return tenant_digest(origin.tenant) + _digest(origin, kept, b"dialoop.similar"), text


def _digest(origin: Origin, kept: Json, purpose: bytes) -> bytes:
    text = orjson.dumps([astuple(origin), kept], option=orjson.OPT_SORT_KEYS)
    return blake2b(text, digest_size=32, person=purpose).digest()


def is_cacheable(body: Json) -> bool:
    """Whether a request has one answer that may be kept."""
    is_one = all(body.get(name) in (None, 1) for name in ("n", "best_of"))
    is_fixed = body.get("temperature") == 0 or type(body.get("seed")) is int
    has_tools = bool(body.get("tools")) and body.get("tool_choice") != "none"
    has_functions = bool(body.get("functions")) and body.get("function_call") != "none"
    is_elsewhere = any(body.get(name) is not None for name in _ELSEWHERE)
    if not is_one or not is_fixed or has_tools or has_functions or is_elsewhere:
        return False
    messages = body.get("messages")
    return not isinstance(messages, list) or all(map(_is_inline, cast("list[Any]", messages)))


def is_storable(completion: Json) -> bool:
    """Whether an answer is whole: every choice ended by itself or by the length asked for."""
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or "error" in completion:
        return False
    return all(
        isinstance(choice, dict) and cast("Json", choice).get("finish_reason") in ("stop", "length")
        for choice in cast("list[Any]", choices)
    )


def _is_inline(message: Any) -> bool:
    content = cast("Json", message).get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return True
    for part in cast("list[Any]", content):
        if not isinstance(part, dict):
            return False
        kind = cast("Json", part).get("type")
        source = cast("Json", part).get(str(kind))
        url = cast("Json", source).get("url") if isinstance(source, dict) else source
        is_data = isinstance(url, str) and url.startswith("data:")
        if kind not in _TEXT_PARTS and not is_data:
            return False
    return True
