"""One streamed chat completion, with the time of each piece."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dialoop.core.errors import UpstreamError, UserError

if TYPE_CHECKING:
    from dialoop.train.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Timed:
    """What one request took."""

    began_s: float
    """On the monotonic clock."""
    pieces_s: tuple[float, ...]
    """When each piece of text came, on the same clock."""
    ended_s: float
    num_tokens: int
    """Of the answer, as the server counts; the pieces where it does not."""
    text: str

    @property
    def first_s(self) -> float:
        """From the request to the first piece."""
        return (self.pieces_s[0] if self.pieces_s else self.ended_s) - self.began_s

    @property
    def total_s(self) -> float:
        """From the request to the end."""
        return self.ended_s - self.began_s

    @property
    def between_s(self) -> float | None:
        """Mean time of a token after the first; None where there is no second."""
        if self.num_tokens < 2 or not self.pieces_s:
            return None
        return (self.pieces_s[-1] - self.pieces_s[0]) / (self.num_tokens - 1)


def timed(endpoint: Endpoint, body: dict[str, Any]) -> Timed:
    """Ask once and listen to the stream; a refusal is not asked again, since it would be timed.

    Raises:
        UserError: the endpoint refuses the request.
        UpstreamError: it cannot be reached, or its stream breaks.
    """
    address = urlsplit(endpoint.url.rstrip("/") + "/chat/completions")
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    line = kinds[address.scheme](address.hostname or "", address.port, timeout=endpoint.timeout_s)
    asked = {"model": endpoint.model, "stream": True, "stream_options": {"include_usage": True}}
    try:
        line.connect()
        began = time.monotonic()
        line.request("POST", address.path, json.dumps(asked | body).encode(), endpoint.headers())
        reply = line.getresponse()
        if reply.status >= 400:
            kind = UserError if reply.status < 500 and reply.status != 429 else UpstreamError
            words = reply.read(500).decode(errors="replace")
            raise kind(f"`{address.geturl()}` refuses ({reply.status}): {words}")
        return _listen(reply, began, address.geturl())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UpstreamError(
            f"`{address.geturl()}` does not answer: {error}", hint="check that it is running"
        ) from error
    finally:
        line.close()


def _listen(reply: http.client.HTTPResponse, began: float, url: str) -> Timed:
    pieces: list[float] = []
    text, counted = "", None
    for raw in reply:
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue
        if (data := line[5:].strip()) == b"[DONE]":
            return Timed(began, tuple(pieces), time.monotonic(), counted or len(pieces), text)
        event = json.loads(data)
        if "error" in event:
            raise UpstreamError(f"`{url}` broke off: {event['error']}")
        counted = (event.get("usage") or {}).get("completion_tokens", counted)
        for choice in event.get("choices", ()):
            delta = choice.get("delta") or {}
            said = delta.get("content") or delta.get("reasoning_content")
            if said:
                pieces.append(time.monotonic())
                text += said
    raise UpstreamError(f"`{url}` ended its stream without [DONE]")
