"""An engine that plays what a test wrote: the protocol without a model."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from dialoop.core.errors import DialoopError, UpstreamError
from dialoop.engines import Delta, EngineInfo, Request


class FakeEngine:
    """Answers every request with the same tokens.

    Args:
        ids: the answer.
        fail_after: raise an error when so many tokens have been given.
        gate: wait for it before every token but the first.
    """

    def __init__(
        self,
        ids: Sequence[int],
        *,
        fail_after: int | None = None,
        gate: asyncio.Event | None = None,
        max_length: int = 256,
    ) -> None:
        self.info = EngineInfo("fake", max_length, "fp32", "cpu", 1)
        self.requests: list[Request] = []
        self.num_aborted = 0
        self.adapters: dict[str, Path] = {}
        self._arrived = asyncio.Semaphore(0)
        self.failure: DialoopError | None = None
        self.num_open = 0
        self._ids, self._fail_after, self._gate = tuple(ids), fail_after, gate

    async def wait_failed(self) -> None:
        """It does not fail for good."""
        await asyncio.Event().wait()

    async def start(self) -> None:
        """Nothing to load."""

    async def health(self) -> None:
        """Healthy unless told otherwise."""
        if self.failure:
            raise self.failure

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Play the answer, a token a delta."""
        if self.failure:
            raise self.failure
        self.requests.append(request)
        self._arrived.release()
        is_done = False
        given = self._ids[: request.sampling.max_tokens]
        try:
            for n, token in enumerate(given):
                if n == self._fail_after:
                    is_done = True
                    raise UpstreamError("the engine's process has died (signal 9)")
                if n and self._gate:
                    await self._gate.wait()
                await asyncio.sleep(0)
                is_done = n + 1 == len(given)
                reason = "length" if len(given) == request.sampling.max_tokens else "stop"
                yield Delta((token,), reason if is_done else None)
        finally:
            self.num_aborted += not is_done

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Remember it."""
        self.adapters[name] = folder

    async def unload_adapter(self, name: str) -> None:
        """Forget it."""
        del self.adapters[name]

    async def wait_requests(self, num: int) -> None:
        """Return when so many more requests have come."""
        for _ in range(num):
            await asyncio.wait_for(self._arrived.acquire(), 10)

    async def drain(self) -> None:
        """Nothing runs on its own."""

    async def stop(self) -> None:
        """Nothing to end."""
