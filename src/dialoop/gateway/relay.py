"""The way to engines and back: another engine before the first content, the truth after it.

Before the first content of an answer nothing was told to the client, so a broken connection, a
time-out or a status 5xx is tried at an engine that was not asked yet. After it nothing is asked
again in silence: the stream ends with an error. A stream is whole when every choice has said why it
ended; whatever else the end looks like, the answer was cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson

from dialoop.gateway import tracing
from dialoop.gateway.call import as_object
from dialoop.gateway.pool import NoEngineError
from dialoop.gateway.sse import DONE, FrameError, Framer
from dialoop.gateway.wire import ConnectError, WireError
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from dialoop.gateway.call import Call, Json
    from dialoop.gateway.pool import Lease, Model, Pool
    from dialoop.gateway.spec import Patience, Sizes
    from dialoop.gateway.upstream import Upstream
    from dialoop.gateway.wire import Response

log = logging.getLogger(__name__)

Event = tuple["Json", bytes]
"""One event of a stream: read, and as it came."""
T = TypeVar("T")

_MAX_ERROR_BYTES = 2**20
_CONTENT = ("content", "tool_calls", "reasoning_content", "reasoning", "refusal", "function_call")
_FAILED_REASONS = ("error", "abort")
_TAIL_S = 1.0


class LateError(WireError):
    """The engine took longer than it may."""


class OverdueError(LateError):
    """A stream took longer than it may, which is not to the engine's blame."""


class EngineError(WireError):
    """The engine said that it failed."""


class CutError(ApiError):
    """An answer of which the client has a part will not be completed."""


class _OtherError(Exception):
    """This engine does not answer the request, and is not to blame."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(str(error))
        self.error = error


class Relay:
    """Asks engines.

    Args:
        pool: the engines.
        patience: time limits.
        sizes: size limits.
    """

    def __init__(self, pool: Pool, patience: Patience, sizes: Sizes) -> None:
        self._pool, self._patience, self._sizes = pool, patience, sizes

    async def whole(self, call: Call) -> tuple[Json, bytes]:
        """A whole answer: read, and as it came.

        Raises:
            ApiError: what the engine said against the request, or why none answered.
        """
        return await self._tried(call, self._read)

    async def stream(self, call: Call) -> Answer:
        """An answer that has begun; close it.

        Raises:
            ApiError: as for `whole`.
        """
        return await self._tried(call, self._begin)

    async def _tried(self, call: Call, attempt: Callable[[Call, Lease, bytes], Awaitable[T]]) -> T:
        """The first attempt that gives an answer; its lease is then the attempt's own."""
        clock = time.monotonic
        problems: list[str] = []
        error: ApiError | None = None
        rest = _encoded({name: call.body[name] for name in call.body if name != "model"})
        failed: frozenset[Upstream] = frozenset()
        for model in self._models(call):
            tried = failed
            while True:
                asked = clock()
                try:
                    lease = await self._pool.lease(model, call.affinity, tried, call.deadline)
                except NoEngineError:
                    break
                engine = lease.engine
                call.queue_s += clock() - asked
                call.engine, call.version, call.served = engine.label, lease.model, model
                call.num_attempts += 1
                asked = clock()
                span = tracing.attempt(call, asked)
                try:
                    return await attempt(call, lease, _document_of(lease.model, rest))
                except WireError as failure:
                    tracing.fail(span, failure, clock())
                    engine.breaker.fail(clock())
                    self._pool.release(lease)
                    failed |= {engine}
                    problems.append(f"{engine.label}: {failure}")
                    log.warning("%s: engine %s: %s", call.id, engine.label, failure)
                    error = _final(failure, problems)
                except _OtherError as other:
                    tracing.fail(span, other, clock())
                    engine.breaker.succeed()
                    self._pool.release(lease)
                    error = other.error
                except ApiError as refusal:
                    tracing.fail(span, refusal, clock())
                    engine.breaker.succeed()
                    self._pool.release(lease)
                    raise
                except BaseException:
                    engine.breaker.forget()
                    self._pool.release(lease)
                    raise
                finally:
                    call.upstream_s += clock() - asked
                if clock() >= call.deadline:
                    raise error
                tried |= {engine}
        raise error or ApiError(
            503,
            f"no engine of `{call.model.name}` is available now",
            code="engine_unavailable",
            retry_after_s=2,
        )

    def _models(self, call: Call) -> list[Model]:
        """The model that was asked for, and those that may answer in its place."""
        served = self._pool.models()
        return [call.model, *(served[name] for name in call.model.fallbacks if name in served)]

    async def _post(self, call: Call, lease: Lease, body: bytes, limit: float) -> Response:
        """The head of a response of status 200; `limit` is of the monotonic clock.

        Raises:
            ApiError: the engine refuses the request.
            _OtherError: it cannot answer it, and another may.
            WireError: it failed.
        """
        try:
            async with asyncio.timeout(limit - time.monotonic()):
                response = await lease.engine.wire.post(call.path, body, call.headers)
                if response.status == 200:
                    return response
                with closing(response):
                    text = await response.read(_MAX_ERROR_BYTES)
        except TimeoutError as error:
            raise LateError("it has not answered in time") from error
        raise _refusal(response.status, text, lease.engine.label, response.headers)

    async def _read(self, call: Call, lease: Lease, body: bytes) -> tuple[Json, bytes]:
        response = await self._post(call, lease, body, call.deadline)
        lease.engine.watch(response)
        with closing(response):
            try:
                async with asyncio.timeout(call.deadline - time.monotonic()):
                    data = await response.read(self._sizes.max_answer_bytes)
            except TimeoutError as error:
                raise LateError("it has not answered in time") from error
            finally:
                lease.engine.unwatch(response)
        found = _document(data)
        _raise_error(found)
        if call.kind in ("chat", "text"):
            _learn_finish(call, found)
        call.usage.learn(found.get("usage"))
        clock = time.monotonic()
        lease.engine.heard_at = call.last_at = clock
        call.first_at = call.first_at or clock
        lease.engine.breaker.succeed()
        self._pool.release(lease)
        return found, data

    async def _begin(self, call: Call, lease: Lease, body: bytes) -> Answer:
        now = time.monotonic()
        limit = min(now + self._patience.first_token_s, call.deadline)
        response = await self._post(call, lease, body, limit)
        answer = Answer(call, lease, response, self._pool, self._patience)
        try:
            await answer.begin(limit)
        except BaseException:
            answer.drop()
            raise
        return answer


class Answer:
    """A stream of which the first content has come.

    Args:
        call: whose answer it is; learns times, usage and why it ended.
        lease: the place at the engine, given back by `close`.
        response: the engine's.
        pool: where the lease is from.
        patience: time limits.
    """

    def __init__(
        self, call: Call, lease: Lease, response: Response, pool: Pool, patience: Patience
    ) -> None:
        self._call, self._lease, self._response, self._pool = call, lease, response, pool
        self._stall_s = patience.stall_s
        self._framer = Framer()
        self._held: list[Event] = []
        self._finished: set[int] = set()
        self._trouble: WireError | ApiError | None = None
        """What is raised when the events before it were given."""
        self._is_done = self._has_content = self._is_failed = self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._limit = self._away_at = 0.0
        """When the engine is late; since when the client takes what came."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every choice has said why it ended."""
        return len(self._finished) >= self._call.num_choices

    async def begin(self, limit: float) -> None:
        """Wait for the first content.

        Args:
            limit: by the monotonic clock.

        Raises:
            WireError: none came.
            ApiError: the engine refuses the request.
        """
        self._expect_until(limit)
        self._lease.engine.watch(self._response)
        try:
            while not self._has_content:
                events = await self._more()
                if events is None:
                    break
                self._held += events
            if self._trouble:  # nothing was told to the client yet
                raise self._trouble
        finally:
            self._lease.engine.unwatch(self._response)
        self._lease.engine.breaker.answer()
        self._expect_more()
        self._away_at = time.monotonic()

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """Events as they come, those that came together in one list.

        Raises:
            CutError: the engine failed, or stopped without saying why.
        """
        held, self._held = self._held, []
        yield held
        try:
            while not self._is_done and (events := await self._more()) is not None:
                if events:
                    yield events
        except (WireError, ApiError) as error:
            log.warning("%s: engine %s: %s", self._call.id, self._call.engine, error)
            if self.is_whole:  # but for its last words
                return
            self._is_failed = not isinstance(error, OverdueError)
            code = "engine_stalled" if isinstance(error, LateError) else "engine_failed"
            status = 504 if isinstance(error, LateError) else 502
            message = f"the answer was cut: engine `{self._call.engine}`: {error}"
            raise CutError(status, message, code=code) from error

    async def finish(self) -> None:
        """Let the engine end its response, so that its connection can be used again."""
        if not self._is_done:
            return
        self._away_at = 0.0
        self._expect_until(time.monotonic() + _TAIL_S)
        with suppress(WireError):
            while await self._response.next():
                pass

    def close(self) -> None:
        """Give everything back; what the engine still does for this answer, it stops."""
        if self._is_closed:
            return
        breaker = self._lease.engine.breaker
        if self._is_failed:
            breaker.fail(time.monotonic())
        elif self.is_whole:
            breaker.succeed()
        else:
            breaker.forget()
        self._pool.release(self._lease)
        self.drop()

    def drop(self) -> None:
        """Close the connection, without a word about the engine or its place."""
        self._is_closed = True
        if self._timer:
            self._timer.cancel()
        self._response.close()

    async def _more(self) -> list[Event] | None:
        """Events that have come; None at the end.

        Raises:
            WireError: the stream broke, or ended without saying why.
            ApiError: the engine refuses the request, after it had begun a stream.
        """
        if self._trouble:
            raise self._trouble
        if self._away_at:  # the engine is not to blame for a client that reads slowly
            self._limit = min(self._limit + time.monotonic() - self._away_at, self._call.deadline)
            self._away_at = 0.0
        data = await self._response.next()
        if not data:
            if not self.is_whole:
                raise WireError("its stream ended without saying why")
            return None
        events: list[Event] = []
        try:
            for payload in self._framer.feed(data):
                if payload == DONE:
                    self._end()
                    break
                event = _document(payload)
                self._learn(event)
                events.append((event, payload))
        except FrameError as error:
            self._trouble = WireError(str(error))
        except (AttributeError, TypeError):
            self._trouble = WireError(f"it sent no completion: {data[:200]!r}")
        except (WireError, ApiError) as error:
            self._trouble = error
        if self._trouble and not events:
            raise self._trouble
        self._away_at = time.monotonic()
        return events

    def _end(self) -> None:
        if not self.is_whole:
            raise WireError("its stream ended without saying why")
        self._is_done = self._has_content = True

    def _learn(self, event: Json) -> None:
        if "error" in event:
            _raise_error(event)
        if usage := event.get("usage"):
            self._call.usage.learn(usage)
        for choice in event.get("choices") or ():
            reason = choice.get("finish_reason")
            if reason:
                if reason in _FAILED_REASONS:
                    raise EngineError(f"it ended the answer with `{reason}`")
                self._finished.add(choice.get("index", 0))
                self._call.finish = self._call.finish or reason
            elif not _has_content(choice):
                continue
            self._has_content = True
            call, now = self._call, time.monotonic()
            call.num_events += 1
            call.first_at = call.first_at or now
            self._lease.engine.heard_at = call.last_at = now
            self._limit = min(now + self._stall_s, call.deadline)

    def _expect_more(self) -> None:
        """Wait for content as long as a stream may stall."""
        self._expect_until(min(time.monotonic() + self._stall_s, self._call.deadline))

    def _expect_until(self, limit: float) -> None:
        """Wait until then; later content moves it."""
        self._limit = limit
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, limit - time.monotonic()), self._look)

    def _look(self) -> None:
        """The limit of some time ago is over; most of the time it was moved by now."""
        now = time.monotonic()
        if self._away_at and now < self._call.deadline:
            self._limit, self._away_at = self._limit + now - self._away_at, now
        if now < self._limit:
            self._expect_until(self._limit)
        elif now >= self._call.deadline and self._has_content:
            self._response.fail(OverdueError("the answer took longer than it may"))
        else:
            self._response.fail(LateError("nothing came for too long"))


def _encoded(body: Json) -> bytes:
    """JSON.

    Raises:
        ApiError: it is nested too deeply.
    """
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, f"the body is nested too deeply ({error})") from error


def _document_of(model: str, rest: bytes) -> bytes:
    """A request's JSON, with the model's name put before the rest of its fields."""
    return b'{"model":' + orjson.dumps(model) + (b"," if len(rest) > 2 else b"") + rest[1:]


def _learn_finish(call: Call, found: Json) -> None:
    """Why a whole answer ended.

    Raises:
        EngineError: it does not say, or is no answer.
    """
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices:
        raise EngineError("its answer has no choices")
    for choice in cast("list[Any]", choices):
        reason = as_object(choice).get("finish_reason")
        if not isinstance(reason, str) or reason in _FAILED_REASONS:
            raise EngineError("its answer does not say how it ended")
        call.finish = call.finish or reason


def _has_content(choice: Json) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return bool(delta) and any(delta.get(name) for name in _CONTENT)


def _document(data: bytes) -> Json:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise WireError(f"it sent no JSON: {data[:200]!r}") from error
    if not isinstance(found, dict):
        raise WireError(f"it sent no JSON object: {data[:200]!r}")
    return cast("Json", found)


def _raise_error(found: Json) -> None:
    """Raise what an engine says instead of an answer."""
    error = found.get("error")
    if not error:
        return
    code = as_object(error).get("code")
    if isinstance(code, int) and 400 <= code < 500:
        raise _passed(code, found)
    raise EngineError(_message(found))


def _refusal(
    status: int, text: bytes, engine: str, headers: dict[bytes, bytes]
) -> ApiError | _OtherError | WireError:
    """What a status other than 200 means."""
    try:
        said = _document(text)
    except WireError:
        said = {"error": text[:500].decode("utf-8", "replace").strip()}
    message = _message(said) or f"status {status}"
    if status in (401, 403):
        refused = f"engine `{engine}` refuses the gateway's key ({message})"
        return _OtherError(ApiError(502, refused, code="engine_failed"))
    if status == 429:
        wait = headers.get(b"retry-after", b"1")
        seconds = int(wait) if wait.isdigit() else 1
        busy = f"engine `{engine}` is busy: {message}"
        return _OtherError(ApiError(429, busy, code="overloaded", retry_after_s=seconds))
    if status in (404, 405, 501):
        return _OtherError(_passed(status, said))
    if 400 <= status < 500:
        return _passed(status, said)
    return EngineError(f"status {status}: {message}")


def _passed(status: int, said: Json) -> ApiError:
    """An engine's refusal, in OpenAI's shape."""
    inner = as_object(said.get("error")) or said
    param, code = inner.get("param"), inner.get("code")
    return ApiError(
        status,
        _message(said) or "the engine refused the request",
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
    )


def _message(said: Json) -> str:
    error = said.get("error", said)
    inner = as_object(error)
    return str(inner.get("message") or inner.get("detail") or "" if inner else error)[:2000]


def _final(failure: WireError, problems: list[str]) -> ApiError:
    """What the client is told when no further engine can be asked."""
    told = "; ".join(problems)
    if isinstance(failure, LateError):
        return ApiError(504, f"no engine answered in time ({told})", code="engine_stalled")
    if isinstance(failure, ConnectError):
        return ApiError(
            503, f"no engine could be reached ({told})", code="engine_unavailable", retry_after_s=2
        )
    return ApiError(502, f"no engine could answer ({told})", code="engine_failed")
