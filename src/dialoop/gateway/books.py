"""What is written behind requests' backs: usage, traces, spans, access lines; never in their way.

Everything waits in memory, bounded, and is written once a second. While the database is away usage
waits on and traces are given up from the oldest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import DialoopError
from dialoop.gateway import tracing
from dialoop.gateway.limits.quota import QuotaBook, Usage, day_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dialoop.gateway.database import Database
    from dialoop.gateway.spec import TraceSettings
    from dialoop.gateway.store.traces import Trace
    from dialoop.gateway.store.usage import Usage as UsageTable
    from dialoop.gateway.store.usage import UsageTotals
    from dialoop.gateway.visit import Visit

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_MAX_TRACES = 10_000
_BATCH = 250
"""Traces that are written at once: the loop is held for some milliseconds."""
_PRUNE_EVERY_S = 3600.0


class Books:
    """Keeps count.

    Args:
        database: where usage and traces go.
        settings: what is kept of requests.
        access: the access log; None writes none.
    """

    def __init__(
        self, database: Database, settings: TraceSettings, access: tracing.AccessLog | None
    ) -> None:
        self._database, self._settings, self._access = database, settings, access
        self.quotas = QuotaBook()
        self._traces: deque[Trace] = deque()
        self._written: list[Trace] = []
        """Those that are being written."""
        self._exporter = tracing.Exporter(settings) if settings.otlp_endpoint else None
        self._tasks: list[asyncio.Task[None]] = []
        self._has_failed = False
        self._pruned_at = time.monotonic()
        self.num_lost = 0
        """Traces that were given up."""

    def start(self) -> None:
        """Write from now on."""
        writing = [self._write_all]
        if self._exporter:  # by itself: a collector that hangs holds nothing else up
            writing.append(self._exporter.flush)
        if self._access:  # lines wait for no database
            writing.append(self._log)
        self._tasks = [asyncio.create_task(self._always(work)) for work in writing]

    def sends(self, context: tracing.Context) -> bool:
        """Whether the spans of a trace are wanted."""
        return self._exporter is not None and context.is_sampled

    async def close(self) -> None:
        """Write what is left, and stop."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.flush()
        if self._exporter:
            await self._exporter.flush()
            self._exporter.close()

    def take(self, visit: Visit, now: float) -> None:
        """A request has ended."""
        offset = tracing.wall_offset()
        call, key = visit.call, visit.key
        if key and call and call.num_attempts:
            usage = Usage(1, call.usage.prompt, call.usage.completion, call.usage.cached)
            self.quotas.add(key.id, day_of(now + offset), usage)
        found: dict[str, Any] | None = None
        if self._access:
            found = tracing.record(visit, now, offset)
            self._access.add(found)
        if self._settings.store and call:
            self._keep(visit, found or tracing.record(visit, now, offset))
        if self._exporter and self.sends(visit.trace):
            self._exporter.add(visit.trace, tracing.spans(visit, now), offset)

    def find(self, tenant: str, request_id: str) -> Trace | None:
        """A trace that is not written yet."""
        for trace in (*self._written, *self._traces):
            if trace.request_id == request_id and trace.tenant == tenant:
                return trace
        return None

    async def flush(self) -> None:
        """Write what has come, but for spans."""
        await self._log()
        await self._write_all()

    async def _log(self) -> None:
        if self._access:
            self._access.flush()

    async def _write_all(self) -> None:
        try:
            await self._write(self._database)
        except DialoopError as error:
            if not self._has_failed:
                log.warning("usage and traces wait to be written: %s", error)
            self._has_failed = True
        else:
            self._has_failed = False

    def _keep(self, visit: Visit, found: dict[str, Any]) -> None:
        from dialoop.gateway.store.traces import Trace

        if len(self._traces) >= _MAX_TRACES:
            self._traces.popleft()
            self.num_lost += 1
        call = visit.call
        body = dict(found)
        if self._settings.content and visit.content:
            body["content"] = visit.content
        trace = Trace(
            request_id=visit.id,
            trace_id=visit.trace.trace_id,
            tenant=visit.tenant,
            key_id=visit.key.id if visit.key else None,
            started_at=found["time"],
            model=call.model.name if call else None,
            engine=call.engine if call else None,
            status=visit.status,
            body=body,
        )
        self._traces.append(trace)

    async def _write(self, database: Database) -> None:
        from dialoop.gateway.store.responses import Responses
        from dialoop.gateway.store.traces import Traces
        from dialoop.gateway.store.usage import Usage as UsageTable

        table = UsageTable(database)
        rows = self.quotas.drain()
        try:
            await table.add(rows)
        except DialoopError:
            self.quotas.restore(rows)
            raise
        await self._learn(table)
        traces = Traces(database)
        while self._traces:
            batch = [self._traces.popleft() for _ in range(min(_BATCH, len(self._traces)))]
            self._written = batch
            try:
                await traces.add(batch)
            except BaseException:
                self._traces.extendleft(reversed(batch))
                raise
            finally:
                self._written = []
            await asyncio.sleep(0)  # requests first
        if time.monotonic() - self._pruned_at > _PRUNE_EVERY_S:
            self._pruned_at = time.monotonic()
            await Responses(database).prune()
            await traces.prune(time.time() - self._settings.keep_days * 86_400)

    async def _learn(self, table: UsageTable) -> None:
        """Read the totals of the keys that have a quota."""
        names = self.quotas.keys()
        if not names:
            return
        day = day_of(time.time())
        of_month = await table.totals_by_key(names, day[:8] + "01")
        of_day = await table.totals_by_key(names, day)
        for key_id in names:
            self.quotas.learn(
                key_id, day, _tokens(of_day.get(key_id)), _tokens(of_month.get(key_id))
            )

    async def _always(self, flush: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await flush()
            except Exception:
                log.exception("the books cannot be written: a bug")


def _tokens(totals: UsageTotals | None) -> int:
    return totals.prompt_tokens + totals.completion_tokens if totals else 0
