"""One HTTP request at the gateway, and the response to it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

import orjson

from dialoop.gateway.sse import DONE, frame
from dialoop.serve.failure import ApiError
from dialoop.serve.http import Gone, Reply

if TYPE_CHECKING:
    from types import TracebackType

    from dialoop.gateway.call import Call, Json
    from dialoop.gateway.keys import Key
    from dialoop.gateway.tracing import Context, Span
    from dialoop.serve.http import Receive, Scope, Send

CLIENT_GONE = 499


class GatewayReply(Reply):
    """A response whose further headers are collected until it begins."""

    def __init__(self, send: Send, request_id: str) -> None:
        super().__init__(send, request_id)
        self.more: list[tuple[bytes, bytes]] = []
        self.closes = False
        """Whether the connection ends with this response."""

    async def error(self, error: ApiError) -> None:
        """Say what is wrong; a stream that has begun ends after it as streams do."""
        if self.status is None:
            await super().error(error)
            return
        await self.event(error.body())
        await self.end(frame(DONE))

    async def _start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        last = ((b"connection", b"close"),) if self.closes else ()
        await super()._start(status, *headers, *self.more, *last)


def header(scope: Scope, name: bytes) -> bytes:
    """A header of a request; empty where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return b""


@dataclass(slots=True)
class Visit:
    """A request and what becomes known of it."""

    scope: Scope
    receive: Receive
    reply: GatewayReply
    id: str
    began: float
    """By the monotonic clock."""
    trace: Context
    path: str = "other"
    """As metrics call it: with the names of its parts, not the parts."""
    names: dict[str, str] = field(default_factory=dict[str, str])
    """Parts of the path, by the names that its route gives them."""
    key: Key | None = None
    call: Call | None = None
    is_gone: bool = False
    spans: list[Span] = field(default_factory=list["Span"])
    """What was done for it, beside the request's own span."""
    content: Json = field(default_factory=dict[str, Any])
    """Messages and answer, where the configuration has them kept."""
    notes: Json = field(default_factory=dict[str, Any])
    """Told to logs and traces."""

    @property
    def tenant(self) -> str:
        """Whose data it may touch."""
        return self.key.tenant if self.key else "default"

    @property
    def status(self) -> int:
        """Of HTTP; 499 where the client went away."""
        return CLIENT_GONE if self.is_gone else self.reply.status or 500

    def header(self, name: bytes) -> bytes:
        """A header of the request; empty where there is none."""
        return header(self.scope, name)

    async def body(self, max_bytes: int, client_s: float) -> bytes:
        """The whole body.

        Raises:
            ApiError: too large, or too slow.
            Gone: the client went away.
        """
        length = self.header(b"content-length")
        if length.isdigit() and int(length) > max_bytes:
            raise _too_large(max_bytes)
        try:
            async with asyncio.timeout(client_s):
                return await self._whole_body(max_bytes)
        except TimeoutError as error:
            self.reply.closes = True
            raise ApiError(408, f"the body did not come within {client_s:g} s") from error

    async def json(self, max_bytes: int, client_s: float) -> Json:
        """The body, a JSON object.

        Raises:
            ApiError: it is something else.
            Gone: the client went away.
        """
        body = await self.body(max_bytes, client_s)
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ApiError(400, f"the body is not JSON ({error})", code="invalid_json") from error
        if not isinstance(value, dict):
            raise ApiError(400, "the body is not a JSON object", code="invalid_json")
        return cast("Json", value)

    async def _whole_body(self, max_bytes: int) -> bytes:
        event = await self._receive()
        if not event.get("more_body"):
            return _within(event.get("body", b""), max_bytes)
        parts = bytearray(event.get("body", b""))
        while event.get("more_body"):
            event = await self._receive()
            parts += event.get("body", b"")
            _within(parts, max_bytes)
        return bytes(parts)

    async def _receive(self) -> Any:
        event = await self.receive()
        if event["type"] == "http.disconnect":
            raise Gone
        return event


class WhileThere:
    """A block that is cancelled when the client goes away, and then raises `Gone`."""

    __slots__ = ("_has_gone", "_is_over", "_owner", "_visit", "_watching")

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._has_gone = self._is_over = False
        self._owner: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        if self._watching:
            self._watching.cancel()
        if self._has_gone and self._owner:
            self._owner.uncancel()
            if kind is asyncio.CancelledError:
                raise Gone from None

    def over(self) -> None:
        """The response is being completed: from here on its end is not the client's going."""
        self._is_over = True

    async def _watch(self) -> None:
        receive = self._visit.receive
        with suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass
            if not self._is_over and self._owner:
                self._has_gone = True
                self._owner.cancel()


def _within(body: bytes | bytearray, max_bytes: int) -> bytes:
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body  # pyright: ignore[reportReturnType]


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes} bytes", code="request_too_large")
