"""The little of HTTP that the server needs, on raw ASGI: bodies, JSON responses, event streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

import orjson

from dialoop.serve.failure import ApiError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 32 * 2**20


class Gone(Exception):  # noqa: N818  not an error: the client went away
    """The client has closed the connection."""


async def read_json(receive: Receive) -> dict[str, Any]:
    """The body of a request.

    Raises:
        ApiError: too large, or not a JSON object.
        Gone: the client went away before its body was whole.
    """
    body = bytearray()
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Gone
        body += event.get("body", b"")
        more = event.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES // 2**20} MiB")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    return cast("dict[str, Any]", value)


async def until_gone(receive: Receive) -> None:
    """Return when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Reply:
    """One response, which remembers whether it has begun.

    Args:
        send: ASGI's.
        request_id: told to the client in a header.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._headers = [(b"x-request-id", request_id.encode())]
        self.status: int | None = None
        """None until the response has begun."""

    async def json(self, value: Any, status: int = 200, *extra: tuple[bytes, bytes]) -> None:
        """Answer with a JSON document."""
        await self.bytes(orjson.dumps(value), b"application/json", status, *extra)

    async def bytes(
        self, body: bytes, kind: bytes, status: int = 200, *extra: tuple[bytes, bytes]
    ) -> None:
        """Answer with a body."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, (b"content-type", kind), length, *extra)
        await self._send({"type": "http.response.body", "body": body})

    async def error(self, error: ApiError) -> None:
        """Say what is wrong: as a response, or as the last event of a stream that has begun."""
        if self.status is not None:
            await self.event(error.body())
            await self.end()
            return
        wait = error.retry_after_s
        extra = [] if wait is None else [(b"retry-after", str(wait).encode())]
        await self.json(error.body(), error.status, *extra)

    async def start_events(self) -> None:
        """Begin an event stream."""
        kind = (b"content-type", b"text/event-stream; charset=utf-8")
        await self._start(200, kind, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

    async def event(self, value: Any) -> None:
        """Send one event."""
        await self.raw(b"data: " + orjson.dumps(value) + b"\n\n")

    async def raw(self, data: bytes) -> None:
        """Send bytes of a stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """End a stream, with its last bytes."""
        await self._send({"type": "http.response.body", "body": data})

    async def _start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        self.status = status
        start = {"type": "http.response.start", "status": status}
        await self._send({**start, "headers": [*headers, *self._headers]})
