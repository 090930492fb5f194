"""An Engine that is a server of another project: streams over HTTP to a supervised process.

Closing a stream closes its connection, which aborts the work. An engine that dies ends every open
request with an UpstreamError and is started again; requests that come meanwhile are refused with
one, so that clients try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson

from dialoop.core.errors import DialoopError, UpstreamError, UserError
from dialoop.engines import Delta, EngineInfo, Request, Sampling, unknown_adapter
from dialoop.engines.choose import check_base
from dialoop.engines.external import read_lora
from dialoop.engines.limits import check_room
from dialoop.engines.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.engines.external import EngineSpec, External, Json, Lora
    from dialoop.engines.supervisor import Patience, Program

_CONNECT_S = 5.0
_NOTICE_S = 0.3
_IDLE_S = 2.0
"""Connections idle for longer are not used again: engines close them after 5 s, unannounced."""
_LINE_BYTES = 2**20
_ONE_TOKEN = Request((1,), Sampling(max_tokens=1, temperature=0.0))


class ServedEngine:
    """An engine in a process that speaks HTTP.

    Args:
        engine: how to speak with it.
        spec: what it serves.
        program: how its process is run.
        patience: limits of its supervisor.
        stall_s: with work to do, an engine that is silent for so long counts as frozen.
        emit: receives notes.
        adapter: the adapter that answers requests that name none; the base model unless given.
    """

    def __init__(
        self,
        engine: External,
        spec: EngineSpec,
        program: Program,
        patience: Patience,
        stall_s: float,
        emit: Callable[[Event], None],
        adapter: str | None = None,
    ) -> None:
        self._engine, self._spec, self._stall_s = engine, spec, stall_s
        self._adapter = adapter
        self._adapters = {lora.name: lora for lora in spec.adapters}
        self._http: Any = None
        self._num_open = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._heard_at = 0.0
        self._refusal: UpstreamError | None = None
        self._loss: UpstreamError | None = None
        self._watching: asyncio.Task[None] | None = None
        self.supervisor = Supervisor(program, self._probe, self._lose, patience, emit)

    @property
    def info(self) -> EngineInfo:
        """What has started.

        Raises:
            RuntimeError: nothing has started.
        """
        if self._http is None:
            raise RuntimeError("the engine has not started")
        spec = self._spec
        device = "cpu" if spec.device == "cpu" else f"cuda x {spec.tensor_parallel}"
        kind = self._engine.kind
        return EngineInfo(kind, spec.max_length, spec.dtype, device, spec.threads or 0)

    @property
    def num_open(self) -> int:
        """Requests being answered or waiting."""
        return self._num_open

    @property
    def failure(self) -> DialoopError | None:
        """Why nothing more will ever be answered; None while it works or is started again."""
        return self.supervisor.failure

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that are loaded."""
        return tuple(self._adapters)

    async def wait_failed(self) -> None:
        """Return when the engine will not be started again."""
        await self.supervisor.has_failed.wait()

    async def start(self) -> None:
        """Start the process, or take over one that does the same; has served one token then."""
        import aiohttp

        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            read_bufsize=_LINE_BYTES,
        )
        try:
            await self.supervisor.start()
        except BaseException:
            await self._http.close()
            self._http = None
            raise
        self._watching = asyncio.create_task(self._watch())

    async def health(self) -> None:
        """Serve one token.

        Raises:
            UpstreamError: the engine cannot.
        """
        async for _ in self.generate(_ONE_TOKEN):
            pass

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Answer one request; closing the iterator early aborts the work on it."""
        self._check(request)
        if not self._num_open:
            self._heard_at = time.monotonic()  # silence counts from when there is work
        self._num_open += 1
        self._is_idle.clear()
        try:
            url = self.supervisor.url
            async with aclosing(self._deltas(url, request)) as deltas:
                async for delta in deltas:
                    yield delta
        except UpstreamError as error:
            await asyncio.sleep(_NOTICE_S)  # the supervisor may know more than the connection
            raise self._loss or error from error
        finally:
            self._num_open -= 1
            if not self._num_open:
                self._is_idle.set()

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter while the engine runs.

        Raises:
            UserError: the engine cannot, has no room, or does not take this one.
            UpstreamError: it does not answer.
        """
        await asyncio.to_thread(check_base, self._spec.model, folder)
        lora = read_lora(name, folder)
        path, body = self._engine.load(lora)
        if lora.name in self._adapters or lora.name == self._spec.name:
            raise UserError(
                f"`{lora.name}` is loaded already", hint="unload it, or take another name"
            )
        if len(self._adapters) >= self._spec.max_adapters:
            raise UserError(
                f"{self._spec.max_adapters} adapters are loaded and no more may be",
                hint="unload one, or raise `--external.max_adapters`",
            )
        if lora.rank > self._spec.max_lora_rank:
            raise UserError(
                f"the adapter `{lora.name}` has rank {lora.rank}, and room was made for "
                f"{self._spec.max_lora_rank}",
                hint="raise `--external.max_adapter_rank`",
            )
        await self._post(path, body)
        self._adapters[lora.name] = lora

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            UserError: no such adapter, or the engine cannot.
            UpstreamError: it does not answer.
        """
        if name not in self._adapters:
            raise unknown_adapter(name, self._adapters)
        await self._post(*self._engine.unload(name))
        del self._adapters[name]

    async def drain(self) -> None:
        """Refuse new requests and wait until the open ones have ended."""
        self._refusal = UpstreamError("the engine is shutting down", hint="try again later")
        await self._is_idle.wait()

    async def stop(self) -> None:
        """End the process; open requests end with an UpstreamError."""
        self._refusal = self._loss = UpstreamError("the engine was stopped", hint="try again later")
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self.supervisor.stop()
        if self._http:
            await self._http.close()

    def _check(self, request: Request) -> None:
        if refusal := self._refusal or self.supervisor.failure:
            raise refusal
        if not self.supervisor.is_up:
            raise UpstreamError(
                f"{self._engine.kind} has died and is being started again",
                hint="try again in a moment",
            )
        if request.adapter is not None and request.adapter not in self._adapters:
            raise unknown_adapter(request.adapter, self._adapters)
        check_room(request, self.info.max_length)

    async def _deltas(self, url: str, request: Request) -> AsyncGenerator[Delta, None]:
        """Deltas up to the last one.

        Raises:
            UserError: the engine refused the request.
            UpstreamError: the answer was broken off, or none came.
        """
        import aiohttp

        adapter = request.adapter or self._adapter
        path, body = self._engine.ask(request, self._spec.name, adapter)
        read = self._engine.reader(request)
        try:
            async with self._http.post(url + path, json=body) as response:
                await self._refuse(response, request)
                async for line in response.content:
                    self._heard_at = time.monotonic()
                    if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                        continue
                    delta = read(self._event(line, request))
                    if delta is None:
                        continue
                    yield delta
                    if delta.finish:
                        return
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error
        raise self._broken("its stream ended without a reason")

    def _event(self, line: bytes, request: Request) -> Json:
        try:
            event: Json = orjson.loads(line[5:])
        except ValueError as error:
            raise self._broken(f"it sent no JSON: {line[:200]!r}") from error
        if "choices" not in event and "error" in event and "meta_info" not in event:
            if _is_refusal(event["error"]):
                raise self._refused(_message(event), request)
            raise self._broken(_message(event))
        return event

    async def _post(self, path: str, body: Json) -> None:
        import aiohttp

        try:
            async with self._http.post(self.supervisor.url + path, json=body) as response:
                await self._refuse(response)
                await response.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error

    def _refused(self, said: str, request: Request | None) -> UserError:
        """What the engine did not want of a request; it names the schema only by what is wrong."""
        if request is not None and request.schema is not None:
            return UserError(f"the JSON Schema cannot be kept: {said}")
        return UserError(f"{self._engine.kind} refused the request: {said}")

    async def _refuse(self, response: Any, request: Request | None = None) -> None:
        """Raise what the engine says instead of an answer."""
        if response.status == 200:
            return
        text = (await response.text())[:2000]
        try:
            said = _message(orjson.loads(text))
        except ValueError:
            said = text
        if 400 <= response.status < 500:
            raise self._refused(said, request)
        raise self._broken(f"status {response.status}: {said}")

    def _broken(self, how: str) -> UpstreamError:
        return UpstreamError(
            f"{self._engine.kind} broke off the answer ({how})", hint="try again in a moment"
        )

    async def _probe(self, url: str) -> None:
        async for _ in self._deltas(url, _ONE_TOKEN):
            self._loss = None
        for lora in self._adapters.values():
            if lora not in self._spec.adapters:
                await self._restore(lora)

    async def _restore(self, lora: Lora) -> None:
        """Load again, in a new process, what was loaded into the one that died."""
        with contextlib.suppress(UserError):  # it is there: the process was not a new one
            await self._post(*self._engine.load(lora))

    def _lose(self, error: UpstreamError) -> None:
        self._loss = error

    async def _watch(self) -> None:
        """End an engine that says nothing although it has work; its supervisor starts it again."""
        while True:
            await asyncio.sleep(min(1.0, self._stall_s / 10))
            silence = time.monotonic() - self._heard_at
            if self._num_open and self.supervisor.is_up and silence > self._stall_s:
                reason = f"has said nothing for {self._stall_s:.0f} s and was ended"
                self._lose(UpstreamError(f"{self._engine.kind} {reason}", hint="try again"))
                await self.supervisor.kill(reason)


def _is_refusal(error: Any) -> bool:
    """Whether an error inside a stream is about the request: its code is a status from 400 on."""
    code = error.get("code") if isinstance(error, dict) else None
    return isinstance(code, int) and 400 <= code < 500


def _message(body: Any) -> str:
    """The words of an error body in any of the engines' shapes."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            return str(inner.get("message") or inner.get("error_message") or inner)
        return str(inner)
    return str(body)
