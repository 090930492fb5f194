"""Who changed what; rows are added and never changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from dialoop.gateway.store.tables import audit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.gateway.database import Database


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change."""

    created_at: float
    """Seconds since 1970."""
    actor: str
    """A key's id, or `command line`."""
    action: str
    """What was done: `key.create`."""
    object: str
    """Id of what it was done to."""
    detail: dict[str, Any]


class Audit:
    """The changes of all tenants; each method sees those of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self, tenant: str, actor: str, action: str, object_id: str, detail: Mapping[str, Any]
    ) -> None:
        """Keep that something was changed."""
        row = {
            "tenant": tenant,
            "created_at": time.time(),
            "actor": actor,
            "action": action,
            "object": object_id,
            "detail": dict(detail),
        }
        await self._database.change(insert(audit).values(row))

    async def list(self, tenant: str, since: float = 0.0, limit: int = 100) -> list[AuditRecord]:
        """A tenant's, from `since` on, the newest first."""
        wanted = (
            select(audit)
            .where(audit.c.tenant == tenant, audit.c.created_at >= since)
            .order_by(audit.c.created_at.desc(), audit.c.sequence.desc())
            .limit(limit)
        )
        return [
            AuditRecord(
                row["created_at"], row["actor"], row["action"], row["object"], row["detail"]
            )
            for row in await self._database.rows(wanted)
        ]
