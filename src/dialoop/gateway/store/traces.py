"""Traces of requests, for those who have no collector of their own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, tuple_

from dialoop.gateway.store.tables import inserting, traces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import RowMapping

    from dialoop.gateway.database import Database

_PRUNED_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class Trace:
    """What became of one request."""

    request_id: str
    trace_id: str
    tenant: str
    key_id: str | None
    started_at: float
    """Seconds since 1970."""
    model: str | None
    engine: str | None
    status: int
    """HTTP status of the answer."""
    body: dict[str, Any]
    """Spans and measurements."""


class Traces:
    """The traces of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, rows: Iterable[Trace]) -> None:
        """Keep traces, all or none; one of a tenant's known request takes the earlier's place."""
        latest = {(trace.tenant, trace.request_id): trace for trace in rows}
        if not latest:
            return
        new = inserting(self._database.kind, traces)
        others = [column for column in traces.c if not column.primary_key]
        put = new.on_conflict_do_update(
            index_elements=["tenant", "request_id"],
            set_={column.name: new.excluded[column.name] for column in others},
        )
        # In one order everywhere, or two processes could wait for one another's rows.
        await self._database.change(put, [_row(latest[place]) for place in sorted(latest)])

    async def get(self, tenant: str, request_id: str) -> Trace | None:
        """The trace of a tenant's request; None when it has no such request."""
        wanted = select(traces).where(traces.c.tenant == tenant, traces.c.request_id == request_id)
        row = await self._database.row(wanted)
        return None if row is None else _trace(row)

    async def list(self, tenant: str, since: float = 0.0, limit: int = 100) -> list[Trace]:
        """A tenant's, from `since` on, the newest first."""
        wanted = (
            select(traces)
            .where(traces.c.tenant == tenant, traces.c.started_at >= since)
            .order_by(traces.c.started_at.desc(), traces.c.request_id)
            .limit(limit)
        )
        return [_trace(row) for row in await self._database.rows(wanted)]

    async def prune(self, before: float) -> int:
        """Delete what began before then, of all tenants, some at a time; how many that were."""
        place = tuple_(traces.c.tenant, traces.c.request_id)
        old = (
            select(traces.c.tenant, traces.c.request_id)
            .where(traces.c.started_at < before)
            .limit(_PRUNED_TOGETHER)
        )
        total = 0
        while True:
            num = await self._database.change(delete(traces).where(place.in_(old)))
            total += num
            if num < _PRUNED_TOGETHER:
                return total


def _row(trace: Trace) -> dict[str, Any]:
    """As `asdict`, without copying the body."""
    return {field.name: getattr(trace, field.name) for field in fields(trace)}


def _trace(row: RowMapping) -> Trace:
    return Trace(**{name: row[name] for name in Trace.__slots__})
