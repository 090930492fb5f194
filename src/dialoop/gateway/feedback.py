"""`POST /v1/feedback`: what a user thinks of an answer, tied to the request that gave it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from dialoop.gateway.app import App
    from dialoop.gateway.visit import Visit

Json = dict[str, Any]

_FIELDS = ("request_id", "thumb", "corrected", "reason", "message_index", "user")
_MAX_BYTES = 2**20
_MAX_CHARS = 100_000


async def put(app: App, visit: Visit) -> None:
    """Keep a thumb, a corrected answer, or a reason."""
    from dialoop.gateway.store.feedback import Feedback
    from dialoop.gateway.store.traces import Traces

    parts = app.parts
    if visit.key:
        visit.key.allow("feedback")
    body = await visit.json(_MAX_BYTES, parts.job.patience.client_s)
    _check(body)
    tenant, request_id = visit.tenant, body["request_id"]
    trace = parts.stores.books.find(tenant, request_id)
    if trace is None:
        trace = await Traces(parts.database).get(tenant, request_id)
    if trace is None:
        raise ApiError(
            404,
            f"request_id: no request `{request_id[:100]}` of yours is known; it is the "
            "`x-request-id` header of an answer",
            param="request_id",
        )
    said = {name: body.get(name) for name in _FIELDS[1:]}
    kept = await Feedback(parts.database).put(tenant, request_id, trace.trace_id, **said)
    await visit.reply.json(
        {"id": kept.id, "object": "feedback", "created_at": int(kept.created_at)}
        | {"request_id": request_id, "trace_id": trace.trace_id}
        | said
    )


def _check(body: Json) -> None:
    if unknown := sorted(body.keys() - set(_FIELDS)):
        raise bad(unknown[0][:100], f"unknown parameter (known: {', '.join(_FIELDS)})")
    if not isinstance(body.get("request_id"), str):
        raise bad("request_id", "the `x-request-id` of an answer is required")
    if body.get("thumb") not in (None, "up", "down"):
        raise bad("thumb", "`up` or `down`")
    for name in ("corrected", "reason", "user"):
        value = body.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > _MAX_CHARS):
            raise bad(name, f"a text of at most {_MAX_CHARS} characters")
    index = body.get("message_index")
    if index is not None and (type(index) is not int or not 0 <= index < 2**31):
        raise bad("message_index", "the place of a message, from 0")
    if not any(body.get(name) for name in ("thumb", "corrected", "reason")):
        raise bad("thumb", "a thumb, a corrected answer or a reason is required")
