"""What happened to a request, as spans: kept in the database, sent by OTLP, told to the access log.

One trace a request, from the client's own (`traceparent`, W3C Trace Context) through the gateway's
parts to the engine, which gets the engine span as its parent. Attribute names are those of
OpenTelemetry's semantic conventions for HTTP and for generative AI (1.41, in development). Texts
are in a trace only where the configuration says so.

Source of the encoding: OTLP 1.9, JSON form (`opentelemetry-proto`, `trace.proto`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from dialoop import __version__
from dialoop.gateway.wire import Wire, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dialoop.gateway.call import Call
    from dialoop.gateway.spec import TraceSettings
    from dialoop.gateway.visit import Visit

log = logging.getLogger(__name__)

Json = dict[str, Any]
_PARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_MAX_WAITING = 20_000
_BATCH = 512
_SERVER, _CLIENT, _INTERNAL = 2, 3, 1
"""Kinds of spans in OTLP."""
_OPEN = 0.0
"""End of a span that has not ended."""
_ASKED = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
"""What is known of an attempt that failed."""
_OPERATIONS = {"chat": "chat", "text": "text_completion", "embed": "embeddings", "rerank": "rerank"}


@dataclass(slots=True)
class Span:
    """A piece of time in which something was done; monotonic seconds."""

    name: str
    began: float
    ended: float
    kind: int = _INTERNAL
    id: str = ""
    attributes: Json = field(default_factory=dict[str, Any])
    error: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a request is in a trace."""

    trace_id: str
    span_id: str
    """Of the gateway's own span."""
    parent_id: str
    """Of the client's; empty where the trace begins here."""
    is_sampled: bool

    def header(self, span_id: str) -> bytes:
        """`traceparent` for what a span calls."""
        return f"00-{self.trace_id}-{span_id}-{'01' if self.is_sampled else '00'}".encode()


def begin(traceparent: bytes, sample: float) -> Context:
    """Go on with the client's trace, or begin one.

    Args:
        traceparent: of the request; empty or wrong where there is none.
        sample: share of the traces that begin here to keep.
    """
    found = _PARENT.fullmatch(traceparent.decode("latin-1").strip()) if traceparent else None
    own = os.urandom(24).hex()
    span_id = own[32:]
    if found and found[1].strip("0") and found[2].strip("0"):
        return Context(found[1], span_id, found[2], bool(int(found[3], 16) & 1))
    return Context(own[:32], span_id, "", int(own[:8], 16) < sample * 2**32)


def new_span_id() -> str:
    """A fresh id."""
    return os.urandom(8).hex()


def record(visit: Visit, now: float, offset: float) -> Json:
    """A request as one document: what the database keeps and the access log tells.

    Args:
        visit: the request, ended.
        now: monotonic seconds.
        offset: from the monotonic clock to the wall's.
    """
    call = visit.call
    found: Json = {
        "time": visit.began + offset,
        "request_id": visit.id,
        "trace_id": visit.trace.trace_id,
        "method": visit.scope["method"],
        "path": visit.path,
        "status": visit.status,
        "duration_ms": round((now - visit.began) * 1000, 2),
        "client": (visit.scope.get("client") or ("",))[0],
    }
    if visit.key:
        found |= {"key": visit.key.id, "tenant": visit.key.tenant}
    if call:
        found |= {
            "model": call.model.name,
            "engine": call.engine,
            "version": call.version,
            "stream": call.is_stream,
            "attempts": call.num_attempts,
            "queue_ms": round(call.queue_s * 1000, 2),
            "finish": call.finish,
        }
        if call.first_at:
            found["first_token_ms"] = round((call.first_at - visit.began) * 1000, 2)
        if call.usage.is_known:
            usage = call.usage
            found |= {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
            found["cached_tokens"] = usage.cached
    return found | visit.notes


def spans(visit: Visit, now: float) -> list[Span]:
    """The spans of a request, its own first."""
    call, scope = visit.call, visit.scope
    root = Span(f"{scope['method']} {visit.path}", visit.began, now, _SERVER, visit.trace.span_id)
    root.attributes = {
        "http.request.method": scope["method"],
        "http.route": visit.path,
        "http.response.status_code": visit.status,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "dialoop.request_id": visit.id,
    }
    root.error = str(visit.notes.get("error", "")) or (
        str(visit.status) if visit.status >= 500 else ""
    )
    if visit.key:
        root.attributes |= {"dialoop.key": visit.key.id, "dialoop.tenant": visit.key.tenant}
    if call is None:
        return [root]
    attributes: Json = {
        "gen_ai.operation.name": _OPERATIONS[call.kind],
        "gen_ai.provider.name": "dialoop",
        "gen_ai.request.model": call.model.name,
        "gen_ai.request.stream": call.is_stream,
    }
    for name in ("temperature", "top_p", "max_tokens", "seed", "presence_penalty"):
        if isinstance(call.body.get(name), int | float):
            attributes[f"gen_ai.request.{name}"] = call.body[name]
    if call.usage.is_known:
        attributes["gen_ai.usage.input_tokens"] = call.usage.prompt
        attributes["gen_ai.usage.output_tokens"] = call.usage.completion
        attributes["gen_ai.usage.cache_read.input_tokens"] = call.usage.cached
    if call.finish:
        attributes["gen_ai.response.finish_reasons"] = [call.finish]
    if call.served:
        attributes["gen_ai.response.model"] = call.served.name
    if call.first_at:
        attributes["gen_ai.response.time_to_first_chunk"] = call.first_at - call.began
    if conversation := visit.notes.get("conversation"):
        attributes["gen_ai.conversation.id"] = conversation
    root.attributes |= attributes
    for span in visit.spans:
        if span.ended == _OPEN:
            span.ended, span.error = now, root.error
            span.attributes |= attributes
        else:
            span.attributes |= {name: attributes[name] for name in _ASKED}
    return [root, *visit.spans]


def attempt(call: Call, now: float) -> Span | None:
    """Begin the span of asking an engine, which continues the trace below it.

    Args:
        call: learns the header for the engine; its engine and version are those to ask.
        now: monotonic seconds.

    Returns:
        The span, which ends with the request unless it fails; None where nobody wants it.
    """
    if call.trace is None:
        return None
    if call.spans is None:
        _lead(call, call.trace, call.trace.span_id)
        return None
    name = f"{_OPERATIONS[call.kind]} {call.model.name}"
    span = Span(name, now, _OPEN, _CLIENT, new_span_id())
    span.attributes = {"server.address": call.engine, "dialoop.version": call.version}
    _lead(call, call.trace, span.id)
    call.spans.append(span)
    return span


def _lead(call: Call, context: Context, span_id: str) -> None:
    """Tell the engine which span it is asked by."""
    others = (header for header in call.headers if header[0] != b"traceparent")
    call.headers = (*others, (b"traceparent", context.header(span_id)))


def fail(span: Span | None, error: Exception, now: float) -> None:
    """End an attempt that gave no answer."""
    if span:
        span.ended, span.error = now, str(error) or type(error).__name__


def to_otlp(batch: Iterable[tuple[Context, list[Span], float]], service: str) -> bytes:
    """Spans as an OTLP export request.

    Args:
        batch: traces' contexts and spans, with the offset from the monotonic clock to the wall's.
        service: name of what exports.
    """
    out: list[Json] = []
    for context, found, offset in batch:
        for span in found:
            is_root = span.id == context.span_id
            out.append(
                {
                    "traceId": context.trace_id,
                    "spanId": span.id or new_span_id(),
                    "parentSpanId": context.parent_id if is_root else context.span_id,
                    "name": span.name,
                    "kind": span.kind,
                    "startTimeUnixNano": str(int((span.began + offset) * 1e9)),
                    "endTimeUnixNano": str(int((span.ended + offset) * 1e9)),
                    "attributes": [_attribute(k, v) for k, v in span.attributes.items()],
                    "status": {"code": 2, "message": span.error} if span.error else {},
                }
            )
    resource = {"service.name": service, "service.version": __version__}
    scope = {"name": "dialoop.gateway", "version": __version__}
    return orjson.dumps(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": [_attribute(k, v) for k, v in resource.items()]},
                    "scopeSpans": [{"scope": scope, "spans": out}],
                }
            ]
        }
    )


def _attribute(key: str, value: Any) -> Json:
    return {"key": key, "value": _value(value)}


def _value(value: Any) -> Json:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(item) for item in value]}}  # pyright: ignore[reportUnknownVariableType]
    return {"stringValue": str(value)}


class Exporter:
    """Sends spans to a collector, in batches, in the background; never in a request's way.

    Args:
        settings: where to.
    """

    def __init__(self, settings: TraceSettings) -> None:
        if settings.otlp_endpoint is None:
            raise ValueError("no endpoint")
        parts = urlsplit(settings.otlp_endpoint)
        headers = tuple(settings.otlp_headers.items())
        self._path = (parts.path.rstrip("/") or "/v1/traces").encode()
        self._wire = Wire(f"{parts.scheme}://{parts.netloc}", headers)
        self._service = settings.service_name
        self._waiting: deque[tuple[Context, list[Span], float]] = deque()
        self.num_lost = 0
        """Traces that were not sent because the collector was away for too long."""
        self._has_failed = False

    def add(self, context: Context, found: list[Span], offset: float) -> None:
        """Take a trace; the oldest one goes when too many wait."""
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft()
            self.num_lost += 1
        self._waiting.append((context, found, offset))

    async def flush(self) -> None:
        """Send what waits; what could not be sent waits on."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                async with asyncio.timeout(10):
                    with closing(
                        await self._wire.post(self._path, to_otlp(batch, self._service))
                    ) as response:
                        await response.read(2**20)
                if response.status in (429, 502, 503, 504):
                    raise WireError(f"status {response.status}")
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(batch))
                raise
            except (WireError, TimeoutError) as error:
                self._waiting.extendleft(reversed(batch))
                if not self._has_failed:
                    log.warning("traces cannot be sent: %s", error or "time-out")
                self._has_failed = True
                return
            if response.status >= 400:
                self.num_lost += len(batch)
                log.warning("the collector refuses traces: status %d", response.status)
            self._has_failed = False

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()


class AccessLog:
    """One line of JSON a request, written in batches.

    Args:
        write: takes text.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._lines: list[bytes] = []

    def add(self, found: Json) -> None:
        """Take a request."""
        self._lines.append(orjson.dumps(found))

    def flush(self) -> None:
        """Write what has come."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(b"\n".join(lines).decode() + "\n")


def wall_offset() -> float:
    """From the monotonic clock to the wall's, in seconds."""
    return time.time() - time.monotonic()
