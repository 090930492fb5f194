"""One engine as the gateway sees it: its connections, open requests, breaker, and whether it lives.

Alive means: has served a token within the time of a check, to a client or to the check itself. A
`/health` that answers says nothing of an engine whose worker has died or hangs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, cast

import orjson

from dialoop.gateway.breaker import Breaker
from dialoop.gateway.call import as_object
from dialoop.gateway.wire import Wire, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.gateway.spec import EngineEntry, GatewayJob
    from dialoop.gateway.wire import Response

log = logging.getLogger(__name__)

_MAX_PROBE_BYTES = 2**22


class FrozenError(WireError):
    """The engine was found dead or frozen while a request waited for it."""


class Upstream:
    """One engine.

    Args:
        entry: where it is.
        job: how it is treated.
        died: called when checks find it dead.
    """

    def __init__(
        self, entry: EngineEntry, job: GatewayJob, died: Callable[[Upstream], None]
    ) -> None:
        self.label = entry.label
        secret = entry.api_key.get_secret_value() if entry.api_key else ""
        headers = (("authorization", f"Bearer {secret}"),) if secret else ()
        self.wire = Wire(entry.url, headers, job.patience.connect_s)
        self.breaker = Breaker(job.breaker.num_failures, job.breaker.open_s)
        self.treat(entry, job, died)
        self.models: tuple[str, ...] = ()
        """The models it lists; known after the first check."""
        self.windows: dict[str, int] = {}
        """Their longest prompt and answer together, in tokens, where it says so."""
        self.num_open = 0
        self.is_healthy = True
        self.heard_at = 0.0
        """When it last sent content; the monotonic clock."""
        self.was_asked = asyncio.Event()
        """Set when it was first asked what it serves."""
        self._failed_checks = 0
        self._waiting: set[Response] = set()
        self._checking: asyncio.Task[None] | None = None

    def treat(self, entry: EngineEntry, job: GatewayJob, died: Callable[[Upstream], None]) -> None:
        """Treat it as another configuration says; its URL, name and key stay."""
        self.entry, self.died, self._health = entry, died, job.health
        self.wire.connect_s = job.patience.connect_s
        self.breaker.num_failures = job.breaker.num_failures
        self.breaker.open_s = job.breaker.open_s

    @property
    def load(self) -> float:
        """Open requests."""
        return self.num_open

    @property
    def is_full(self) -> bool:
        """Whether no further request has a place."""
        return self.num_open >= self.entry.max_concurrent

    def is_available(self, now: float) -> bool:
        """Whether it could answer a request."""
        return self.is_healthy and self.breaker.allows(now)

    def watch(self, response: Response) -> None:
        """Its first content is waited for; until `unwatch`."""
        self._waiting.add(response)

    def unwatch(self, response: Response) -> None:
        """The response has begun, or was given up."""
        self._waiting.discard(response)

    def abandon(self) -> None:
        """End, with a FrozenError, every request that the engine has not begun to answer."""
        error = FrozenError(f"engine `{self.label}` was found dead")
        self.wire.fail_pending(error)
        for response in list(self._waiting):
            response.fail(error)

    def start(self) -> None:
        """Check it from now on."""
        self._checking = asyncio.create_task(self._check_always())

    async def stop(self) -> None:
        """Check it no more and close the connections that wait."""
        if self._checking:
            self._checking.cancel()
            with suppress(asyncio.CancelledError):
                await self._checking
        self.wire.close()

    async def check(self) -> None:
        """One check now; what it finds is `is_healthy`."""
        began = time.monotonic()
        problem = ""
        try:
            async with asyncio.timeout(self._health.timeout_s):
                if not self.models or self._health.probe == "models":
                    self.models = await self._list_models()
                if self._health.probe == "token":
                    await self._serve_token()
        except TimeoutError:
            problem = f"no token within {self._health.timeout_s:g} s"
        except (WireError, ValueError) as error:
            problem = str(error)
        finally:
            self.was_asked.set()
        if problem and self.heard_at < began:
            self._failed_checks += 1
            if self._failed_checks >= self._health.num_failures:
                self._die(problem)
            return
        if not self.is_healthy:
            log.warning("engine %s answers again", self.label)
        self.is_healthy, self._failed_checks = True, 0
        if not problem:
            self.breaker.succeed()

    def _die(self, problem: str) -> None:
        if self.is_healthy:
            log.warning("engine %s gets no requests: %s", self.label, problem)
        self.is_healthy = False
        self.wire.drop_idle()
        self.died(self)

    async def _check_always(self) -> None:
        if self._health.probe == "none":
            await self.check_models_once()
            return
        while True:
            heard_s = time.monotonic() - self.heard_at
            if heard_s >= self._health.interval_s or not (self.is_healthy and self.models):
                await self.check()
            await asyncio.sleep(self._health.interval_s)

    async def check_models_once(self) -> None:
        """Learn what it serves, for gateways that name no models; tried until it works."""
        while not self.models:
            with suppress(WireError, ValueError, TimeoutError):
                async with asyncio.timeout(self._health.timeout_s):
                    self.models = await self._list_models()
            self.was_asked.set()
            if self.models:
                return
            await asyncio.sleep(self._health.interval_s)

    async def _list_models(self) -> tuple[str, ...]:
        with closing(await self.wire.get(b"/models")) as response:
            data = await response.read(_MAX_PROBE_BYTES)
            if response.status != 200:
                raise ValueError(f"GET /models: status {response.status}")
        found = as_object(orjson.loads(data)).get("data")
        if not isinstance(found, list):
            raise ValueError("GET /models: no list of models")  # noqa: TRY004  not our mistake
        cards = [as_object(item) for item in cast("list[Any]", found)]
        windows = {
            item["id"]: item.get("max_model_len")
            for item in cards
            if isinstance(item.get("id"), str)
        }
        self.windows = {name: size for name, size in windows.items() if type(size) is int}
        return tuple(windows)

    async def _serve_token(self) -> None:
        """One token of its first model, whatever kind of model that is."""
        if not self.models:
            raise ValueError("it lists no model")
        body: dict[str, Any] = {"model": self.models[0], "max_tokens": 1, "temperature": 0}
        asked = {"/chat/completions": {"messages": [{"role": "user", "content": "."}]}}
        asked |= {"/completions": {"prompt": "."}}
        status = 0
        for path, fields in asked.items():
            sent = orjson.dumps(body | fields)
            with closing(await self.wire.post(path.encode(), sent)) as response:
                await response.read(_MAX_PROBE_BYTES)
                status = response.status
            if status < 500 and status not in (404, 405, 400):
                break
        else:
            status = await self._embed_word()
        if status >= 500 or status in (401, 403):
            raise ValueError(f"a check got status {status}")
        self.heard_at = time.monotonic()

    async def _embed_word(self) -> int:
        """For engines that only embed or rerank; those that do neither have answered with 4xx."""
        sent = orjson.dumps({"model": self.models[0], "input": "."})
        with closing(await self.wire.post(b"/embeddings", sent)) as response:
            await response.read(_MAX_PROBE_BYTES)
            return response.status
