"""What was said, on its way from and to a database that may be slow, frozen or gone.

A write that fails waits in memory and is tried again, in order, for a quarter of an hour; meanwhile
its items are read from there by this worker. So a database that is away costs an answer its
time-out at most. A worker that is killed in that time loses what waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import DialoopError, UserError
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dialoop.gateway.database import Database
    from dialoop.gateway.store.conversations import Conversations, Recent
    from dialoop.gateway.store.responses import Responses

log = logging.getLogger(__name__)

Json = dict[str, Any]
MAX_WAITING = 2000
"""Writes that wait; the oldest is given up for one more."""
KEEP_S = 900.0
"""How long a write is tried."""
_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class Write:
    """Something to be written."""

    work: Callable[[], Awaitable[object]]
    """Tried until it does not raise; what was done already it does not do twice."""
    place: tuple[str, str] = ("", "")
    """Tenant and conversation that it adds to."""
    items: list[Json] = field(default_factory=list[Json])
    """What it adds there."""
    since: float = field(default_factory=time.monotonic)


class History:
    """Conversations and responses, as far as the database lets them be.

    Args:
        database: where they are kept.
        clock: seconds, from any start.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._waiting: deque[Write] = deque()
        self._task: asyncio.Task[None] | None = None
        self.num_lost = 0
        """Writes that were given up."""

    @property
    def num_waiting(self) -> int:
        """Writes that have not been done."""
        return len(self._waiting)

    @cached_property
    def conversations(self) -> Conversations:
        """The conversations' table."""
        from dialoop.gateway.store.conversations import Conversations

        return Conversations(self._database)

    @cached_property
    def responses(self) -> Responses:
        """The responses' table."""
        from dialoop.gateway.store.responses import Responses

        return Responses(self._database)

    async def recent(self, tenant: str, conversation_id: str, limit: int) -> Recent:
        """The end of a conversation, what waits to be written included.

        Raises:
            ApiError: 404, the tenant has no such conversation.
            UpstreamError: the database does not answer.
        """
        found = await self.conversations.recent(tenant, conversation_id, limit)
        known = {item["id"] for item in found.items}
        late = [item for item in self._late(tenant, conversation_id) if item["id"] not in known]
        return found.and_then(late)

    async def write(self, write: Write) -> bool:
        """Write now; false where it could not be, and is tried again behind the request's back.

        Where others wait already the database is not asked: it would cost one more time-out.
        """
        if self._waiting:
            self.later(write)
            return False
        try:
            await self._do(write)
        except asyncio.CancelledError:  # what was written by then is not written twice
            self.later(write)
            raise
        except DialoopError as error:
            log.warning("what was said waits to be written: %s", error)
            self.later(write)
            return False
        return True

    def later(self, write: Write) -> None:
        """Write behind the request's back."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._lose("too much waits")
        self._waiting.append(write)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work_off())

    async def close(self) -> None:
        """Try what waits once more, and stop."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        while self._waiting:
            try:
                await self._do(self._waiting.popleft())
            except DialoopError:
                self.num_lost += 1 + len(self._waiting)
                log.exception("%d writes of what was said are lost", 1 + len(self._waiting))
                return

    async def _do(self, write: Write) -> None:
        """Write; what the database refuses for good is not tried again."""
        try:
            await write.work()
        except (ApiError, UserError) as error:  # deleted meanwhile, written already, or no text
            log.info("what was said is not kept: %s", error)

    async def _work_off(self) -> None:
        wait = _FIRST_WAIT_S
        while self._waiting:
            write = self._waiting[0]
            try:
                await self._do(write)
            except DialoopError as error:
                if self._clock() - write.since < KEEP_S:
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, _MAX_WAIT_S)
                    continue
                self._lose(str(error))
            else:
                wait = _FIRST_WAIT_S
            if self._waiting and self._waiting[0] is write:
                self._waiting.popleft()

    def _late(self, tenant: str, conversation_id: str) -> list[Json]:
        place = (tenant, conversation_id)
        return [item for write in self._waiting if write.place == place for item in write.items]

    def _lose(self, reason: str) -> None:
        self.num_lost += 1
        log.error("a write of what was said is given up: %s", reason)
