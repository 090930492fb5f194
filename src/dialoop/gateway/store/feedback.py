"""What users said of answers; rows are added and never changed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from sqlalchemy import insert, select

from dialoop.gateway.store.ids import new_id
from dialoop.gateway.store.tables import feedback
from dialoop.serve.failure import bad

if TYPE_CHECKING:
    from dialoop.gateway.database import Database

_LAST_INDEX = 2**31 - 1
"""The largest number that a column of this kind holds in PostgreSQL."""
Thumb = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """One user's word on one answer."""

    id: str
    created_at: float
    """Seconds since 1970."""
    request_id: str
    trace_id: str | None
    thumb: Thumb | None
    corrected: str | None
    """The answer as it should have been."""
    reason: str | None
    message_index: int | None
    """Which message of the dialogue is meant; None for the answer."""
    user: str | None


class Feedback:
    """The feedback of all tenants; each method sees that of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self,
        tenant: str,
        request_id: str,
        trace_id: str | None = None,
        thumb: Thumb | None = None,
        corrected: str | None = None,
        reason: str | None = None,
        message_index: int | None = None,
        user: str | None = None,
    ) -> FeedbackRecord:
        """Keep what a user said.

        Raises:
            ApiError: 400, `message_index` is no place in a dialogue.
        """
        if message_index is not None and not 0 <= message_index <= _LAST_INDEX:
            raise bad("message_index", f"{message_index} is no place in a dialogue")
        record = FeedbackRecord(
            id=new_id("fb"),
            created_at=time.time(),
            request_id=request_id,
            trace_id=trace_id,
            thumb=thumb,
            corrected=corrected,
            reason=reason,
            message_index=message_index,
            user=user,
        )
        await self._database.change(insert(feedback).values(tenant=tenant, **asdict(record)))
        return record

    async def list(self, tenant: str, since: float = 0.0, limit: int = 100) -> list[FeedbackRecord]:
        """A tenant's, from `since` on, the newest first."""
        wanted = (
            select(feedback)
            .where(feedback.c.tenant == tenant, feedback.c.created_at >= since)
            .order_by(feedback.c.created_at.desc(), feedback.c.sequence.desc())
            .limit(limit)
        )
        names = FeedbackRecord.__slots__
        return [
            FeedbackRecord(**{name: row[name] for name in names})
            for row in await self._database.rows(wanted)
        ]
