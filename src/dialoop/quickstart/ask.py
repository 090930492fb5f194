"""Ask a served model questions over HTTP: by the official `openai` client where it is installed."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dialoop.chat.message import to_openai
from dialoop.core.errors import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.message import Message

TIMEOUT_S = 300


def client_name() -> str:
    """What will ask: `openai VERSION`, or `urllib`."""
    return f"openai {version('openai')}" if find_spec("openai") else "urllib"


async def ask(
    url: str, model: str, dialogues: Sequence[Sequence[Message]], max_tokens: int
) -> list[str]:
    """The served model's answer to each dialogue; all are asked at once.

    Args:
        url: the server's address, with `/v1`.
        model: the name that it serves under.
        dialogues: each ends with the user.
        max_tokens: longest answer.

    Raises:
        UpstreamError: the server refused or failed.
    """
    requests = [
        {
            "model": model,
            "messages": [to_openai(turn) for turn in dialogue],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        for dialogue in dialogues
    ]
    asking = _by_openai if find_spec("openai") else _by_urllib
    return await asking(url, requests)


async def _by_openai(url: str, requests: list[dict[str, Any]]) -> list[str]:
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=TIMEOUT_S) as client:
        asked = [client.chat.completions.create(**request) for request in requests]
        try:
            replies = await asyncio.gather(*asked)
        except openai.OpenAIError as error:
            raise UpstreamError(f"the served model did not answer: {error}") from error
    return [(reply.choices[0].message.content or "").strip() for reply in replies]


async def _by_urllib(url: str, requests: list[dict[str, Any]]) -> list[str]:
    return await asyncio.gather(*(asyncio.to_thread(_post, url, request) for request in requests))


def _post(url: str, request: dict[str, Any]) -> str:
    post = urllib.request.Request(  # noqa: S310 - our own server
        f"{url}/chat/completions",
        data=json.dumps(request).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(post, timeout=TIMEOUT_S) as reply:  # noqa: S310
            return json.load(reply)["choices"][0]["message"]["content"].strip()
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            said = error.read(500).decode(errors="replace")
        raise UpstreamError(f"the served model did not answer: {error} {said}") from error
    except urllib.error.URLError as error:
        raise UpstreamError(f"the served model did not answer: {error}") from error
