"""Chat, text, vectors and scores: a request on its way to engines, its answer on the way back.

A client that goes away cancels the work on its request in every phase: in line, before the first
token, in the stream, in a whole answer. Every stream ends with an event that tells the truth.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import orjson

from dialoop.gateway import ask, dialogue, vectors
from dialoop.gateway.cache import replay
from dialoop.gateway.call import Call, as_object
from dialoop.gateway.filtered import Filter
from dialoop.gateway.gathered import Gathered
from dialoop.gateway.guard import Blocked
from dialoop.gateway.kept import Kept
from dialoop.gateway.relay import CutError
from dialoop.gateway.routing import conversation_key
from dialoop.gateway.sse import frame
from dialoop.gateway.telling import Telling
from dialoop.gateway.visit import WhileThere
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from dialoop.gateway.app import App
    from dialoop.gateway.call import Json
    from dialoop.gateway.form import Form
    from dialoop.gateway.parts import Parts
    from dialoop.gateway.relay import Answer
    from dialoop.gateway.spec import Kind
    from dialoop.gateway.visit import Visit

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text",
    "/v1/embeddings": "embed",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
}
"""What is asked for at which path."""
_SAID = ("messages", "tools", "prompt", "suffix", "input", "query", "documents")
"""Fields of a request with what was said; kept with its trace where that is configured."""
_SCOPES: dict[Kind, str] = {"chat": "chat", "text": "chat", "embed": "embed", "rerank": "rerank"}


class Completions:
    """Answers requests that engines answer.

    Args:
        app: for what it works with now.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def answer(self, visit: Visit) -> None:
        """Answer one request."""
        parts = self._app.parts
        body = await visit.json(parts.job.sizes.max_body_bytes, parts.job.patience.client_s)
        await self.serve(visit, KINDS[visit.scope["path"]], body)

    async def serve(self, visit: Visit, kind: Kind, body: Json, form: Form | None = None) -> None:
        """Answer what a body asks.

        Args:
            visit: whose request it is.
            kind: of the request.
            body: as clients of chat completions and the like write it.
            form: how the answer is told; as completions are, unless given.

        Raises:
            ApiError: the request is refused, or cannot be answered.
            Gone: the client went away.
        """
        parts = self._app.parts
        ask.check(kind, body, parts.job.sizes)
        visit.call = call = _call(visit, kind, body, parts)
        if visit.key:
            visit.key.allow(_SCOPES[kind], call.model.name)
        async with WhileThere(visit) as there, parts.admitted(visit, call):
            turn = None
            if kind == "chat":
                body, turn = await dialogue.prepare(visit, call, body, parts, form)
            if parts.job.traces.content:
                visit.content = {name: body[name] for name in _SAID if body.get(name) is not None}
            _check_input(visit, body, parts)
            kept = await Kept.look(visit, call, body, parts)
            telling = Telling(form, turn)
            try:
                if kept and kept.value:
                    await self._again(visit, call, kept.value, there, parts, telling)
                elif call.is_stream:
                    await self._stream(visit, call, there, parts, kept, telling)
                else:
                    await self._whole(visit, call, there, parts, kept, telling)
            except BaseException as error:
                telling.leave(error)
                raise
            if kind == "chat" and call.usage.is_known and (own := parts.contexts.find(call.model)):
                own.learn(call.body["messages"], call.usage.prompt)

    async def context(self, visit: Visit) -> None:
        """What would be sent of a chat, part by part, and why: nothing is asked."""
        parts = self._app.parts
        body = await visit.json(parts.job.sizes.max_body_bytes, parts.job.patience.client_s)
        ask.check("chat", body, parts.job.sizes)
        call = _call(visit, "chat", body, parts)
        if visit.key:
            visit.key.allow("chat", call.model.name)
        await visit.reply.json(await dialogue.explain(visit, call, body, parts))

    async def _again(
        self,
        visit: Visit,
        call: Call,
        value: bytes,
        there: WhileThere,
        parts: Parts,
        telling: Telling,
    ) -> None:
        """An answer that was given before."""
        visit.reply.more.append((b"x-dialoop-cache", b"hit"))
        visit.notes["cache"] = "hit"
        name, created = f"chatcmpl-{visit.id[:24]}", int(time.time())
        there.over()
        if not call.is_stream:
            data = await telling.whole(visit, replay.whole(value, name, created))
            _tell(visit, call, parts)
            await visit.reply.bytes(data, b"application/json")
            if visit.content:
                _note_answer(visit, orjson.loads(value))
            return
        _tell(visit, call, parts)
        await visit.reply.start_events()
        events = replay.events(value, name, created, has_usage=call.wants_usage)
        told = telling.begin() + b"".join(telling.again(event) for event in events)
        await visit.reply.end(told + await telling.end(visit))
        if visit.content:
            _note_answer(visit, orjson.loads(value))

    async def _whole(
        self,
        visit: Visit,
        call: Call,
        there: WhileThere,
        parts: Parts,
        kept: Kept | None,
        telling: Telling,
    ) -> None:
        found, raw = await parts.relay.whole(call)
        name = (call.served or call.model).name
        has_changed = found.get("model") != name
        found["model"] = name
        if call.kind == "chat":
            has_changed |= _completed(found)
        elif call.body.get("encoding_format") == "base64":
            has_changed |= vectors.encode(found)
        if parts.guard:
            passing = Filter(parts.guard)
            passing.whole(found)
            _note_block(visit, passing, parts)
            has_changed = True
        there.over()
        data = await telling.whole(visit, orjson.dumps(found) if has_changed else raw, found)
        _tell(visit, call, parts)
        await visit.reply.bytes(data, b"application/json")
        _note_answer(visit, found)
        if kept:
            await kept.put(found, call, parts)

    async def _stream(
        self,
        visit: Visit,
        call: Call,
        there: WhileThere,
        parts: Parts,
        kept: Kept | None,
        telling: Telling,
    ) -> None:
        answer = await parts.relay.stream(call)
        telling.gather(Gathered() if kept or visit.content else None)
        try:
            _tell(visit, call, parts)
            await visit.reply.start_events()
            cut = None
            try:
                await self._deliver(visit, call, answer, parts, telling)
            except CutError as error:
                cut = error
                parts.metrics.cut(call, error.code or "")
                visit.notes["error"] = error.code
            last = await telling.end(visit, cut)
            there.over()
            await visit.reply.end(last)
            await answer.finish()
        finally:
            answer.close()
            if telling.gathered:
                _note_answer(visit, telling.gathered.completion())
        if kept and telling.gathered:
            await kept.put(telling.gathered.completion(), call, parts)

    async def _deliver(
        self, visit: Visit, call: Call, answer: Answer, parts: Parts, telling: Telling
    ) -> None:
        """Events as they come, those that came together in one piece."""
        passing = Filter(parts.guard) if parts.guard else None
        name = (call.served or call.model).name
        opening = telling.begin()
        async with aclosing(answer.batches()) as batches:
            async for batch in batches:
                shown = [
                    telling.event(event, _shown(event, raw, name, call, passing))
                    for event, raw in batch
                ]
                if data := opening + b"".join(shown):
                    opening = b""
                    await visit.reply.raw(data)
                    if gathered := telling.gathered:
                        for event, _ in batch:
                            gathered.add(event)
                if passing and passing.num_ended >= call.num_choices:
                    break
        if passing:
            _note_block(visit, passing, parts)


def _call(visit: Visit, kind: Kind, body: Json, parts: Parts) -> Call:
    model = parts.pool.find(body["model"])
    if kind not in model.kinds:
        raise ApiError(
            404,
            f"The model `{model.name}` does not do this; it does {', '.join(sorted(model.kinds))}",
            param="model",
            code="model_not_found",
        )
    is_stream = kind in ("chat", "text") and ask.is_stream(body)
    sent = ask.outgoing(body)
    if is_stream:
        options = as_object(sent.get("stream_options"))
        sent["stream_options"] = {**options, "include_usage": True}
    session = visit.header(b"x-session-id").decode("latin-1") or dialogue.conversation_id(body)
    return Call(
        id=visit.id,
        kind=kind,
        path=ask.PATHS[kind],
        body=sent,
        model=model,
        began=visit.began,
        deadline=visit.began + parts.job.patience.request_s,
        affinity=conversation_key(body, session),
        headers=((b"x-request-id", visit.id.encode()),),
        trace=visit.trace,
        spans=visit.spans if parts.stores.books.sends(visit.trace) else None,
        is_stream=is_stream,
        wants_usage=is_stream and ask.wants_usage(body),
        num_choices=ask.num_choices(kind, body) if kind in ("chat", "text") else 1,
    )


def _completed(found: Json) -> bool:
    """Add fields that OpenAI's schema requires and some engines leave out; whether there were any.

    Clients whose types are made from the schema fail without them.
    """
    has_changed = False
    for choice in found.get("choices") or ():
        message = as_object(choice.get("message"))
        if message and ("refusal" not in message or message.get("annotations") is None):
            message.setdefault("refusal", None)
            message["annotations"] = message.get("annotations") or []
            has_changed = True
    return has_changed


def _check_input(visit: Visit, body: Json, parts: Parts) -> None:
    if not parts.guard:
        return
    try:
        parts.guard.check(ask.texts(body))
    except Blocked as blocked:
        parts.metrics.block("input")
        visit.notes["blocked"] = blocked.rule or blocked.category
        raise ApiError(
            400,
            f"the request was refused by a rule of this service ({blocked.category})",
            param="messages" if "messages" in body else None,
            code="content_filter",
        ) from blocked


def _note_block(visit: Visit, passing: Filter, parts: Parts) -> None:
    if passing.blocked:
        parts.metrics.block("output")
        visit.notes["blocked"] = passing.blocked.rule or passing.blocked.category


def _note_answer(visit: Visit, found: Json) -> None:
    """Keep what the client was given, where that is configured."""
    if visit.content and found.get("choices"):
        visit.content["choices"] = found["choices"]


def _tell(visit: Visit, call: Call, parts: Parts) -> None:
    """Headers that say what the gateway did, before the first byte."""
    now = time.monotonic()
    overhead = max(0.0, now - call.began - call.queue_s - call.upstream_s)
    parts.metrics.overhead(overhead)
    visit.reply.more += [
        (b"x-dialoop-overhead-ms", b"%.2f" % (overhead * 1000)),
        (b"x-dialoop-queue-ms", b"%.2f" % (call.queue_s * 1000)),
        (b"openai-processing-ms", b"%d" % ((now - call.began) * 1000)),
    ]
    if call.served and call.served is not call.model:
        visit.reply.more.append((b"x-dialoop-fallback", call.served.name.encode()))


def _shown(event: Json, raw: bytes, name: str, call: Call, passing: Filter | None) -> bytes:
    """One event as the client gets it; empty where it gets none."""
    has_changed = False
    if event.get("model") != name:
        event["model"] = name
        has_changed = True
    if "usage" in event and not call.wants_usage:
        if not event.get("choices"):
            return b""
        event = {field: value for field, value in event.items() if field != "usage"}
        has_changed = True
    if passing and event.get("choices"):
        if not passing.chunk(event):
            return b""
        has_changed = True
    return frame(orjson.dumps(event) if has_changed else raw)
