"""The ASGI application: OpenAI's routes over one engine, without a web framework.

A client that goes away cancels the work on its request, in line, before the first token or after.
A stream ends with `[DONE]` only when its answer is whole; else its last event is an error.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.chat.template import Template
from dialoop.core.errors import DialoopError, UserError
from dialoop.models.load import text_folder
from dialoop.serve import texts
from dialoop.serve.answer import Part, parts
from dialoop.serve.failure import ApiError, bad, from_error
from dialoop.serve.http import Gone, Reply, read_json, until_gone
from dialoop.serve.metrics import ServerMetrics
from dialoop.serve.openai import Generation, Limits, read_chat, read_text, read_tokens
from dialoop.serve.writer import Choice, Writer, usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from dialoop.engines import Engine, Task
    from dialoop.serve.http import Receive, Scope, Send

log = logging.getLogger(__name__)

_FRESH_S = 2.0
"""An engine that gave a token so recently is healthy without being asked."""
_PROBE_S = 10.0
CLIENT_GONE = 499


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What the application needs to know."""

    model: str
    api_key: str | None
    max_open: int
    """Generations that may run and wait together."""
    may_load_adapters: bool = False
    """Whether clients may load and unload adapters."""


class App:
    """The application over one engine.

    Args:
        engine: started; whoever gave it stops it.
        template: of the same checkpoint.
        settings: names and limits.
    """

    def __init__(self, engine: Engine, template: Template, settings: AppSettings) -> None:
        self._engine = engine
        self._template = template
        self._settings = settings
        self._created = int(time.time())
        self._last_token_at = 0.0
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False
        self.metrics = ServerMetrics()
        self._adapters: dict[str, Template] = {}
        self._gets: dict[str, Callable[[Reply], Awaitable[None]]] = {
            "/v1/models": self._models,
            "/health": self._ready,
            "/health/ready": self._ready,
            "/ready": self._ready,
            "/health/live": self._live,
            "/live": self._live,
            "/metrics": self._metrics,
        }
        self._reads = {"/v1/chat/completions": read_chat, "/v1/completions": read_text}
        self._posts: dict[str, Callable[[str, Receive, Reply], Awaitable[None]]] = {}
        self._posts |= dict.fromkeys(self._reads, self._generate)
        self._posts |= {"/v1/embeddings": self._read, "/v1/rerank": self._read}
        self._posts |= {"/tokenize": self._tokenize}
        if settings.may_load_adapters:
            self._posts |= {
                "/v1/load_lora_adapter": self._load_adapter,
                "/v1/unload_lora_adapter": self._unload_adapter,
            }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what ASGI calls."""
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served, got {scope['type']}")
        path: str = scope["path"]
        reply = Reply(send, uuid.uuid4().hex)
        gone = False
        try:
            await self._route(scope, receive, reply)
        except ApiError as error:
            await reply.error(error)
        except DialoopError as error:
            log.warning("%s: %s", path, error)
            await reply.error(from_error(error))
        except Gone:
            gone = True
        except Exception:
            log.exception("%s: a bug", path)
            await reply.error(ApiError(500, "the server has a bug; its log says more"))
        known = path if path in self._gets or path in self._posts else "other"
        status = CLIENT_GONE if gone else reply.status
        self.metrics.requests.labels(known, str(status)).inc()

    @property
    def num_open(self) -> int:
        """Generations that run or wait."""
        return self._num_open

    async def drain(self) -> None:
        """Refuse new generations and wait until the open ones have ended."""
        self._is_draining = True
        await self._idle.wait()

    async def _route(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        method, path = scope["method"], scope["path"]
        if path.startswith("/v1/") or path in self._posts:
            self._authorize(scope)
        if method == "GET" and path in self._gets:
            await self._gets[path](reply)
        elif method == "POST" and path in self._posts:
            await self._posts[path](path, receive, reply)
        elif path in self._gets or path in self._posts:
            raise ApiError(405, f"{method} is not allowed on {path}")
        elif path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            if method == "GET" and name in self._names():
                await reply.json(self._card(name))
                return
            raise ApiError(404, f"model `{name}` is not served here", code="model_not_found")
        else:
            raise ApiError(404, f"nothing is served at {path}")

    def _authorize(self, scope: Scope) -> None:
        key = self._settings.api_key
        if key is None:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _models(self, reply: Reply) -> None:
        await reply.json({"object": "list", "data": [self._card(name) for name in self._names()]})

    def _names(self) -> tuple[str, ...]:
        """The model and the adapters on it."""
        return (self._settings.model, *self._adapters)

    def _card(self, name: str) -> dict[str, Any]:
        facts = {"id": name, "object": "model", "created": self._created, "owned_by": "dialoop"}
        if name in self._adapters:
            facts["parent"] = self._settings.model
        return facts | {"max_model_len": self._engine.info.max_length}

    def add_adapter(self, name: str, template: Template) -> None:
        """Answer requests for this name by an adapter that the engine has loaded.

        Raises:
            UserError: the name is the model's own.
        """
        if name == self._settings.model:
            raise UserError(f"`{name}` is the name of the model", hint="choose another name")
        self._adapters[name] = template

    async def _load_adapter(self, path: str, receive: Receive, reply: Reply) -> None:
        """As vLLM has it: a name, and a folder on the server's machine."""
        name, folder = _texts(await read_json(receive), "lora_name", "lora_path")
        if name in self._names():
            raise ApiError(400, f"lora_name: `{name}` is served already", param="lora_name")
        try:
            template = await asyncio.to_thread(_template, Path(folder))
            await self._engine.load_adapter(name, Path(folder))
        except UserError as error:
            raise bad("lora_path", Exception.__str__(error)) from error
        self.add_adapter(name, template)
        log.info("%s: adapter `%s` from `%s`", path, name, folder)
        await reply.json(self._card(name))

    async def _unload_adapter(self, path: str, receive: Receive, reply: Reply) -> None:
        (name,) = _texts(await read_json(receive), "lora_name")
        if name not in self._adapters:
            raise ApiError(404, f"no adapter `{name}` is served here", code="model_not_found")
        del self._adapters[name]
        await self._engine.unload_adapter(name)
        log.info("%s: adapter `%s`", path, name)
        await reply.json({"id": name, "object": "model", "deleted": True})

    async def _live(self, reply: Reply) -> None:
        await reply.json({"status": "alive"})

    async def _ready(self, reply: Reply) -> None:
        """Ready means: has just served a token."""
        if self._is_draining:
            raise ApiError(503, "the server is shutting down", retry_after_s=2)
        try:
            await self._probe()
        except DialoopError:
            self.metrics.engine_up.set(0)
            raise
        self.metrics.engine_up.set(1)
        await reply.json({"status": "ready", "model": self._settings.model})

    async def _probe(self) -> None:
        if time.monotonic() - self._last_token_at < _FRESH_S:
            return
        try:
            await asyncio.wait_for(self._engine.health(), _PROBE_S)
        except TimeoutError as error:
            message = f"the engine has served no token within {_PROBE_S:.0f} s"
            raise ApiError(503, message, retry_after_s=5) from error
        self._last_token_at = time.monotonic()

    async def _metrics(self, reply: Reply) -> None:
        with suppress(DialoopError, ApiError):
            self.metrics.engine_up.set(0)
            await self._probe()
            self.metrics.engine_up.set(1)
        await reply.bytes(self.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _generate(self, path: str, receive: Receive, reply: Reply) -> None:
        self._refuse_other(path, "generate")
        began = time.monotonic()
        body = await read_json(receive)
        template, limits = self._served(body)
        generation = self._reads[path](body, template, limits)
        self._enter(len(generation.requests))
        try:
            name = uuid.uuid4().hex[:24]
            writer = Writer.of(generation.kind, name, limits.model, template.tokenizer)
            write = self._stream if generation.is_stream else self._whole
            await _unless_gone(write(generation, writer, reply, began), receive)
        finally:
            self._leave(len(generation.requests))
        self.metrics.request_s.observe(time.monotonic() - began)

    def _served(self, body: dict[str, Any]) -> tuple[Template, Limits]:
        """What a request's model is answered by."""
        adapter = next((name for name in self._adapters if name == body.get("model")), None)
        template = self._adapters.get(adapter or "", self._template)
        name = adapter or self._settings.model
        return template, Limits(self._engine.info.max_length, name, adapter, self._names())

    async def _tokenize(self, path: str, receive: Receive, reply: Reply) -> None:
        """As vLLM has it: the ids of a chat request or a text, which nothing is generated for."""
        self._refuse_other(path, "generate")
        body = await read_json(receive)
        template, limits = self._served(body)
        ids = read_tokens(body, template, limits)
        await reply.json({"tokens": ids, "count": len(ids), "max_model_len": limits.max_length})

    async def _read(self, path: str, receive: Receive, reply: Reply) -> None:
        """Vectors or scores."""
        self._refuse_other(path, "embed" if path == "/v1/embeddings" else "rerank")
        body = await read_json(receive)
        answer = texts.embed if path == "/v1/embeddings" else texts.rerank

        async def work() -> None:
            found = await answer(body, self._template, self._engine, self._settings.model)
            self.metrics.prompt_tokens.inc(found["usage"]["prompt_tokens"])
            await reply.json(found)

        self._enter(1)
        try:
            await _unless_gone(work(), receive)
        except ExceptionGroup as group:  # of the texts, each of which is asked for by itself
            raise group.exceptions[0] from group
        finally:
            self._leave(1)

    def _refuse_other(self, path: str, task: Task) -> None:
        if self._is_draining:
            raise ApiError(503, "the server is shutting down", retry_after_s=2)
        found = self._engine.info.task
        if found != task:
            raise ApiError(404, f"{path}: this server was started to {found}, not to {task}")

    def _enter(self, num: int) -> None:
        limit = self._settings.max_open
        # a request that is larger than the limit by itself is let in when nothing else is there
        if self._num_open and self._num_open + num > limit:
            raise ApiError(
                429,
                f"{self._num_open} requests run or wait, and {limit} may",
                code="overloaded",
                retry_after_s=1,
            )
        self._num_open += num
        self._idle.clear()
        self.metrics.open_requests.set(self._num_open)

    def _leave(self, num: int) -> None:
        self._num_open -= num
        self.metrics.open_requests.set(self._num_open)
        if not self._num_open:
            self._idle.set()

    async def _whole(
        self, generation: Generation, writer: Writer, reply: Reply, began: float
    ) -> None:
        tells = generation.requests[0].sampling.logprobs is not None
        choices = [Choice(echo, logprobs=[] if tells else None) for echo in generation.echoes]
        counts = [0] * len(choices)
        async with aclosing(self._parts(generation, writer, began)) as incoming:
            async for n, part in incoming:
                choice = choices[n]
                choice.text += part.text
                choice.calls += [(_call_id(), call) for call in part.calls]
                if choice.logprobs is not None:
                    choice.logprobs += part.logprobs
                counts[n] = part.num_tokens
                choice.finish = part.finish or ""
        self._count(generation, counts)
        totals = usage(generation.num_prompt_tokens, sum(counts))
        took = f"{1000 * (time.monotonic() - began):.0f}".encode()
        whole = writer.whole(choices, totals)
        await reply.json(whole, 200, (b"openai-processing-ms", took))

    async def _stream(
        self, generation: Generation, writer: Writer, reply: Reply, began: float
    ) -> None:
        counts = [0] * len(generation.requests)
        num_calls = [0] * len(counts)
        async with aclosing(self._parts(generation, writer, began)) as incoming:
            first = await anext(incoming)  # an error before it is still a plain HTTP error
            await reply.start_events()
            for n, echo in enumerate(generation.echoes):
                if echo or generation.kind == "chat":
                    await reply.event(writer.opening(n, echo))
            await _send(first, writer, reply, num_calls)
            counts[first[0]] = first[1].num_tokens
            async for n, part in incoming:
                await _send((n, part), writer, reply, num_calls)
                counts[n] = part.num_tokens
        self._count(generation, counts)
        if generation.has_usage:
            totals = usage(generation.num_prompt_tokens, sum(counts))
            await reply.event(writer.usage_chunk(totals))
        await reply.raw(b"data: [DONE]\n\n")
        await reply.end()

    def _count(self, generation: Generation, counts: list[int]) -> None:
        self.metrics.prompt_tokens.inc(generation.num_prompt_tokens)
        self.metrics.generated_tokens.inc(sum(counts))

    async def _parts(
        self, generation: Generation, writer: Writer, began: float
    ) -> AsyncGenerator[tuple[int, Part], None]:
        """Parts of all choices as they come; closing it aborts every choice."""
        queue: asyncio.Queue[tuple[int, Part] | Exception] = asyncio.Queue()

        async def pump(n: int) -> None:
            incoming = parts(self._engine, writer.tokenizer, generation, n)
            try:
                async with aclosing(incoming):
                    async for part in incoming:
                        queue.put_nowait((n, part))
            except Exception as error:  # noqa: BLE001  handed on to the reader below
                queue.put_nowait(error)

        num_left = len(generation.requests)
        has_begun = False
        async with AsyncExitStack() as stack:
            for n in range(num_left):
                task = asyncio.create_task(pump(n))
                stack.push_async_callback(_cancel, task)
            while num_left:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                self._last_token_at = time.monotonic()
                if not has_begun:
                    self.metrics.first_token_s.observe(self._last_token_at - began)
                    has_begun = True
                num_left -= item[1].finish is not None
                yield item


async def _send(item: tuple[int, Part], writer: Writer, reply: Reply, num_calls: list[int]) -> None:
    """The events of one part."""
    n, part = item
    if part.text or part.logprobs:
        await reply.event(writer.text_chunk(n, part.text, part.logprobs))
    for call in part.calls:
        await reply.event(writer.call_chunk(n, num_calls[n], _call_id(), call))
        num_calls[n] += 1
    if part.finish:
        await reply.event(writer.end_chunk(n, part.finish))


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _texts(body: dict[str, Any], *names: str) -> list[str]:
    """Fields of an order that must all be there, and no others."""
    if unknown := body.keys() - set(names):
        raise bad(min(unknown), "unknown parameter")
    if missing := [name for name in names if not isinstance(body.get(name), str)]:
        raise bad(missing[0], "a text is required")
    return [body[name] for name in names]


def _template(folder: Path) -> Template:
    return Template.from_folder(text_folder(folder))


async def _unless_gone(work: Awaitable[None], receive: Receive) -> None:
    """Do the work, and cancel it when the client goes away.

    Raises:
        Gone: it went away.
    """
    doing = asyncio.ensure_future(work)
    watching = asyncio.create_task(until_gone(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            await _cancel(doing)
            raise Gone
        await doing
    finally:
        await _cancel(watching)
        await _cancel(doing)


async def _cancel(task: asyncio.Future[None]) -> None:
    if task.done():
        return
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
