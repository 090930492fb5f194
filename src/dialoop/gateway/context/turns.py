"""A dialogue cut into system messages and turns, and digests by which counts are remembered."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, cast

import orjson

from dialoop.gateway.context.images import size_of
from dialoop.serve.failure import bad

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]
SYSTEM = ("system", "developer")


def cut(messages: Sequence[Any]) -> tuple[list[int], list[list[int]]]:
    """Places of the system messages, and of the messages of each turn.

    A turn is a user's message with what follows up to the next: answers, calls and their results.
    What stands before the first user's message is a turn, too.

    Raises:
        ApiError: no list of messages with roles.
    """
    system: list[int] = []
    turns: list[list[int]] = []
    for place, message in enumerate(messages):
        role = cast("Json", message).get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise bad(f"messages[{place}]", "a message is an object with a `role`")
        if role in SYSTEM:
            system.append(place)
        elif role == "user" or not turns:
            turns.append([place])
        else:
            turns[-1].append(place)
    if not messages:
        raise bad("messages", "a list of at least one message is required")
    return system, turns


def digest(value: Any, before: bytes = b"") -> bytes:
    """16 bytes that stand for messages or tools, and for what came before them.

    Of an image only the size counts: two pictures of one size have the same tokens.
    """
    slim = [_slim(item) for item in value]
    return hashlib.blake2b(before + orjson.dumps(slim), digest_size=16).digest()


def images_of(message: Json) -> list[str]:
    """Addresses of the images in a message."""
    content: Any = message.get("content")
    if not isinstance(content, list):
        return []
    return [url for part in cast("list[Any]", content) if (url := _url(part)) is not None]


def text_of(message: Json) -> str:
    """The text of a message, its parts joined by line breaks."""
    content: Any = message.get("content")
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    found = [part if isinstance(part, str) else _text(part) for part in parts]
    return "\n".join(text for text in found if text)


def _text(part: Any) -> str:
    text = cast("Json", part).get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _url(part: Any) -> str | None:
    """The address in an image part, in any of the spellings that `chat.message` reads."""
    if not isinstance(part, dict):
        return None
    item = cast("Json", part)
    link = item.get("image_url", item.get("image"))
    url = cast("Json", link).get("url") if isinstance(link, dict) else link
    return url if isinstance(url, str) else None


def _slim(item: Any) -> Any:
    """An item with the sizes of its images in their places."""
    message = cast("Json", item) if isinstance(item, dict) else {}
    content = message.get("content")
    if not isinstance(content, list):
        return cast("Any", item)
    parts = cast("list[Any]", content)
    return message | {"content": [part if _url(part) is None else _sized(part) for part in parts]}


def _sized(part: Json) -> list[Any]:
    url = _url(part) or ""
    return ["image", size_of(url) or url[:64]]
