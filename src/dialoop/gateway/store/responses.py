"""Responses that are kept, and the chains that `previous_response_id` makes of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, literal, or_, select

from dialoop.gateway.store.tables import inserting, responses
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, RowMapping

    from dialoop.gateway.database import Database
    from dialoop.gateway.store.conversations import Item

MAX_CHAIN = 1000
"""Responses that may build on one another."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and what it answered."""

    id: str
    created_at: float
    """Seconds since 1970, as all times here."""
    body: dict[str, Any]
    """OpenAI's response object; its `output` is what the model said."""
    previous_response_id: str | None
    conversation_id: str | None
    expires_at: float | None


class Responses:
    """The responses of all tenants; each method sees those of one, and none that has expired."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self,
        tenant: str,
        response_id: str,
        body: Mapping[str, Any],
        input_items: Sequence[Mapping[str, Any]],
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Keep a response, in place of the tenant's earlier one of this id."""
        values = {
            "body": dict(body),
            "input_items": list(input_items),
            "previous_response_id": previous_response_id,
            "conversation_id": conversation_id,
            "expires_at": expires_at,
        }
        new = inserting(self._database.kind, responses).values(
            tenant=tenant, id=response_id, created_at=time.time(), **values
        )
        await self._database.change(
            new.on_conflict_do_update(index_elements=["tenant", "id"], set_=values)
        )

    async def get(self, tenant: str, response_id: str) -> StoredResponse | None:
        """One of the tenant's; None when it has no such response."""
        row = await self._row(tenant, response_id)
        if row is None:
            return None
        return StoredResponse(
            row["id"],
            row["created_at"],
            row["body"],
            row["previous_response_id"],
            row["conversation_id"],
            row["expires_at"],
        )

    async def input_items(self, tenant: str, response_id: str) -> list[Item] | None:
        """What it answered, without what came before; None when there is no such response."""
        row = await self._row(tenant, response_id)
        return None if row is None else row["input_items"]

    async def chain(self, tenant: str, response_id: str) -> list[Item]:
        """All that was said up to a response, its own output included, the oldest first.

        Raises:
            ApiError: 400, a response of the chain is gone, or there are more than `MAX_CHAIN`.
        """
        link = (
            select(responses.c.id, responses.c.previous_response_id, literal(1).label("length"))
            .where(*_one(tenant, response_id))
            .cte("link", recursive=True)
        )
        before = (
            select(responses.c.id, responses.c.previous_response_id, link.c.length + 1)
            .join(link, responses.c.id == link.c.previous_response_id)
            .where(responses.c.tenant == tenant, _is_kept(), link.c.length <= MAX_CHAIN)
        )
        link = link.union_all(before)
        whole = (
            select(
                responses.c.input_items,
                responses.c.body,
                responses.c.previous_response_id,
            )
            .join(link, responses.c.id == link.c.id)
            .where(responses.c.tenant == tenant)
            .order_by(link.c.length.desc())
        )
        rows = await self._database.rows(whole)
        if len(rows) > MAX_CHAIN:
            raise ApiError(
                400,
                f"previous_response_id: more than {MAX_CHAIN} responses build on one another",
                param="previous_response_id",
            )
        missing = rows[0]["previous_response_id"] if rows else response_id
        if missing is not None:
            raise ApiError(
                400,
                f"Previous response with id '{missing}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return [item for row in rows for item in (*row["input_items"], *row["body"]["output"])]

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Delete it; False when the tenant has no such response."""
        return await self._database.change(delete(responses).where(*_one(tenant, response_id))) == 1

    async def prune(self) -> int:
        """Delete what has expired, of all tenants; how many that were."""
        expired = delete(responses).where(responses.c.expires_at <= time.time())
        return await self._database.change(expired)

    async def _row(self, tenant: str, response_id: str) -> RowMapping | None:
        return await self._database.row(select(responses).where(*_one(tenant, response_id)))


def _one(tenant: str, response_id: str) -> tuple[ColumnElement[bool], ...]:
    return responses.c.tenant == tenant, responses.c.id == response_id, _is_kept()


def _is_kept() -> ColumnElement[bool]:
    return or_(responses.c.expires_at.is_(None), responses.c.expires_at > time.time())
