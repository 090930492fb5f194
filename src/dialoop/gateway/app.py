"""The gateway's ASGI application: who asks, what is asked, and where it goes."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import DialoopError
from dialoop.gateway import feedback, moderations, tracing
from dialoop.gateway.completions import KINDS, Completions
from dialoop.gateway.conversations import ConversationsApi
from dialoop.gateway.responses import ResponsesApi
from dialoop.gateway.tokens import TokensApi
from dialoop.gateway.visit import GatewayReply, Visit, header
from dialoop.serve.failure import ApiError, from_error
from dialoop.serve.http import Gone

if TYPE_CHECKING:
    from dialoop.gateway.parts import Parts
    from dialoop.serve.http import Receive, Scope, Send

log = logging.getLogger(__name__)

Handler = Callable[[Visit], Awaitable[None]]

_OPEN = frozenset({"/live", "/ready", "/health", "/health/live", "/health/ready", "/metrics"})
"""Paths that need no key."""
_ALLOWED = b"authorization, content-type, x-request-id, x-session-id, traceparent"


class App:
    """The application of one worker.

    Args:
        parts: what it works with; may be replaced while requests are under way.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._created = int(time.time())
        self.is_draining = False
        self.num_open = 0
        self.completions = Completions(self)
        self._routes: dict[str, dict[str, Handler]] = {}
        """By path, then by method."""
        self._patterns: list[tuple[re.Pattern[str], str, dict[str, Handler]]] = []
        """Paths with names in them, and how metrics call them."""
        for path in KINDS:
            self.route("POST", path, self.completions.answer)
        for method, path, handler in (
            *ConversationsApi(self).routes(),
            *ResponsesApi(self).routes(),
            *TokensApi(self).routes(),
        ):
            self.route(method, path, handler)
        self.route("POST", "/v1/moderations", lambda visit: moderations.moderate(self, visit))
        self.route("POST", "/v1/context", self.completions.context)
        self.route("POST", "/v1/feedback", lambda visit: feedback.put(self, visit))
        self.route("GET", "/v1/models", self._models)
        self.route("GET", "/v1/models/{name:.+}", self._model)
        for path in ("/live", "/health/live"):
            self.route("GET", path, self._live)
        for path in ("/ready", "/health", "/health/ready"):
            self.route("GET", path, self._ready)
        self.route("GET", "/metrics", self._metrics)

    def route(self, method: str, path: str, handler: Handler) -> None:
        """Answer a path; `{name}` stands for one part of it, found in `Visit.names`."""
        if "{" not in path:
            self._routes.setdefault(path, {})[method] = handler
            return
        named = re.sub(r"\{(\w+)(?::([^}]+))?\}", lambda m: f"(?P<{m[1]}>{m[2] or '[^/]+'})", path)
        for _, other, methods in self._patterns:
            if other == path:
                methods[method] = handler
                return
        self._patterns.append((re.compile(named), path, {method: handler}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what ASGI calls."""
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served, got {scope['type']}")
        parts = self.parts
        visit = self._visit(scope, receive, send, time.monotonic())
        self.num_open += 1
        try:
            await self._answer(visit, parts)
        except Gone:
            visit.is_gone = True
        finally:
            self.num_open -= 1
            now = time.monotonic()
            parts.metrics.count(visit.path, visit.call, visit.status, now)
            parts.tell(visit, now)

    async def _answer(self, visit: Visit, parts: Parts) -> None:
        """Answer one request, or say why not.

        Raises:
            Gone: there is nobody to answer.
        """
        path = visit.scope["path"]
        try:
            await self._route(visit)
        except Gone:
            raise
        except ApiError as error:
            if not visit.call or not visit.call.num_attempts:
                parts.metrics.refuse(error.code or "other")
            await visit.reply.error(error)
        except DialoopError as error:
            log.warning("%s %s: %s", visit.id, path, error)
            await visit.reply.error(from_error(error))
        except Exception:
            log.exception("%s %s: a bug", visit.id, path)
            await visit.reply.error(ApiError(500, "the gateway has a bug; its log says more"))

    def _visit(self, scope: Scope, receive: Receive, send: Send, now: float) -> Visit:
        given = header(scope, b"x-request-id")
        # only what may stand in a header and a log line is taken over
        named = given.decode("ascii", "replace") if 0 < len(given) <= 128 else ""
        name = named if named.isascii() and named.isprintable() and named else uuid.uuid4().hex
        reply = GatewayReply(send, name)
        reply.closes = self.is_draining
        reply.more = self._cors(scope)
        parent = header(scope, b"traceparent")
        context = tracing.begin(parent, self.parts.job.traces.sample)
        return Visit(scope, receive, reply, name, now, context)

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origins = self.parts.job.cors_origins
        if not origins:
            return []
        origin = header(scope, b"origin")
        if not origin or ("*" not in origins and origin.decode("latin-1") not in origins):
            return []
        told = (
            b"x-request-id, retry-after, x-dialoop-overhead-ms, x-dialoop-context, "
            b"x-dialoop-history"
        )
        return [
            (b"access-control-allow-origin", b"*" if "*" in origins else origin),
            (b"access-control-expose-headers", told),
            (b"vary", b"origin"),
        ]

    async def _route(self, visit: Visit) -> None:
        method, path = visit.scope["method"], visit.scope["path"]
        if method == "OPTIONS" and visit.reply.more:
            await self._preflight(visit)
            return
        if path not in _OPEN:
            visit.key = self.parts.find_key(visit.header(b"authorization"))
        methods = self._find(visit, path)
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(sorted(methods))
            raise ApiError(405, f"{method} is not allowed on {path[:200]} (allowed: {allowed})")
        await handler(visit)

    def _find(self, visit: Visit, path: str) -> dict[str, Handler]:
        """What answers a path; also tells the visit its names and how metrics call the path.

        Raises:
            ApiError: nothing does.
        """
        if methods := self._routes.get(path):
            visit.path = path
            return methods
        for pattern, label, methods in self._patterns:
            if found := pattern.fullmatch(path):
                visit.path, visit.names = label, found.groupdict()
                return methods
        raise ApiError(404, f"nothing is served at {path[:200]}")

    async def _preflight(self, visit: Visit) -> None:
        visit.reply.more += [
            (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
            (b"access-control-allow-headers", _ALLOWED),
            (b"access-control-max-age", b"600"),
        ]
        await visit.reply.bytes(b"", b"text/plain", 204)

    async def _models(self, visit: Visit) -> None:
        names = sorted({*self.parts.pool.models(), *self.parts.job.model_aliases})
        key = visit.key
        seen = [n for n in names if key is None or key.models is None or n in key.models]
        await visit.reply.json({"object": "list", "data": [self._card(name) for name in seen]})

    async def _model(self, visit: Visit) -> None:
        model = self.parts.pool.find(visit.names["name"])
        await visit.reply.json(self._card(model.name))

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "dialoop"}

    async def _live(self, visit: Visit) -> None:
        await visit.reply.json({"status": "alive"})

    async def _ready(self, visit: Visit) -> None:
        """Ready means: some engine answers, and the gateway takes requests."""
        pool = self.parts.pool
        if self.is_draining:
            raise ApiError(503, "the gateway is shutting down", retry_after_s=2)
        models = {name: pool.is_served(model) for name, model in pool.models().items()}
        if not any(models.values()):
            raise ApiError(503, "no engine answers", code="engine_unavailable", retry_after_s=2)
        await visit.reply.json({"status": "ready", "models": models})

    async def _metrics(self, visit: Visit) -> None:
        parts = self.parts
        page = parts.metrics.text(parts.pool.engines, parts.pool.num_waiting, parts.stores.history)
        await visit.reply.bytes(page, b"text/plain; version=0.0.4; charset=utf-8")
