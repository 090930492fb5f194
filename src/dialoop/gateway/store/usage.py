"""How much each key was used, by day, for quotas and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from dialoop.gateway.store.tables import inserting, keys, usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import RowMapping

    from dialoop.gateway.database import Database

UsageRow = tuple[str, str, int, int, int, int]
"""Key id, day as `YYYY-MM-DD`, requests, prompt tokens, completion tokens, cached tokens."""
_SUMS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over some days."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt tokens that an engine had computed before."""


@dataclass(frozen=True, slots=True)
class UsageOfDay:
    """A key's use on one day."""

    key_id: str
    key_name: str
    day: str
    """`YYYY-MM-DD`."""
    totals: UsageTotals


class Usage:
    """The sums of all keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, rows: Iterable[UsageRow]) -> None:
        """Add to the sums, all rows or none.

        After a time-out they may have been added or not (`Database.write`).
        """
        sums: dict[tuple[str, str], list[int]] = {}
        for key_id, day, *counts in rows:
            before = sums.get((key_id, day), [0] * len(counts))
            sums[key_id, day] = [a + b for a, b in zip(before, counts, strict=True)]
        if not sums:
            return
        new = inserting(self._database.kind, usage)
        added = new.on_conflict_do_update(
            index_elements=["key_id", "day"],
            set_={name: usage.c[name] + new.excluded[name] for name in _SUMS},
        )
        # In one order everywhere, or two processes could wait for one another's rows.
        parameters = [
            {"key_id": key_id, "day": day} | dict(zip(_SUMS, counts, strict=True))
            for (key_id, day), counts in sorted(sums.items())
        ]
        await self._database.change(added, parameters)

    async def totals(self, key_id: str, since_day: str) -> UsageTotals:
        """A key's sums from a day on, that day included."""
        sums = [func.coalesce(func.sum(usage.c[name]), 0).label(name) for name in _SUMS]
        mine = select(*sums).where(usage.c.key_id == key_id, usage.c.day >= since_day)
        (row,) = await self._database.rows(mine)
        return _totals(row)

    async def totals_by_key(self, key_ids: Iterable[str], since_day: str) -> dict[str, UsageTotals]:
        """The sums of several keys from a day on, by one statement; none for unused keys."""
        sums = [func.sum(usage.c[name]).label(name) for name in _SUMS]
        theirs = (
            select(usage.c.key_id, *sums)
            .where(usage.c.key_id.in_(list(key_ids)), usage.c.day >= since_day)
            .group_by(usage.c.key_id)
        )
        return {row["key_id"]: _totals(row) for row in await self._database.rows(theirs)}

    async def report(self, tenant: str, since: str, until: str) -> list[UsageOfDay]:
        """The days of a tenant's keys, from `since` to `until`, both included; by day and key."""
        joined = usage.join(keys, keys.c.id == usage.c.key_id)
        found = (
            select(usage, keys.c.name)
            .select_from(joined)
            .where(keys.c.tenant == tenant, usage.c.day.between(since, until))
            .order_by(usage.c.day, usage.c.key_id)
        )
        return [
            UsageOfDay(row["key_id"], row["name"], row["day"], _totals(row))
            for row in await self._database.rows(found)
        ]


def _totals(row: RowMapping) -> UsageTotals:
    return UsageTotals(*(int(row[name]) for name in _SUMS))  # PostgreSQL's sums are decimals
