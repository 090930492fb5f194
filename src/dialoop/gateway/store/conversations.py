"""Conversations: their items in order, pinned facts, and a summary of what is long past."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy import delete, insert, select, update

from dialoop.gateway.store.ids import new_id
from dialoop.gateway.store.tables import conversations, items
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from dialoop.gateway.database import Database

T = TypeVar("T")
Item = dict[str, Any]
"""A conversation item in OpenAI's form, its `id` included."""

_PREFIXES = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
"""How ids of items begin that are no messages."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue that is kept."""

    id: str
    created_at: float
    """Seconds since 1970."""
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a conversation was about up to one of its items."""

    text: str
    upto: str
    """Id of the last item that is in it."""


@dataclass(frozen=True, slots=True)
class Recent:
    """The end of a conversation, and what every prompt of it carries."""

    pins: list[str]
    summary: Summary | None
    items: list[Item]
    """The oldest first."""

    def and_then(self, late: Sequence[Item]) -> Recent:
        """The same with further items behind it."""
        return replace(self, items=[*self.items, *late])


class Conversations:
    """The conversations of all tenants; each method sees those of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, tenant: str, metadata: Mapping[str, str]) -> Conversation:
        """Begin one."""
        new = Conversation(new_id("conv"), time.time(), dict(metadata))
        row: dict[str, Any] = {
            "tenant": tenant,
            "id": new.id,
            "created_at": new.created_at,
            "metadata": new.metadata,
            "num_appended": 0,
            "pins": [],
        }
        await self._database.change(insert(conversations).values(row))
        return new

    async def get(self, tenant: str, conversation_id: str) -> Conversation | None:
        """One of the tenant's; None when it has no such conversation."""
        row = await self._database.row(select(conversations).where(*_one(tenant, conversation_id)))
        return None if row is None else Conversation(row["id"], row["created_at"], row["metadata"])

    async def update_metadata(
        self, tenant: str, conversation_id: str, metadata: Mapping[str, str]
    ) -> Conversation:
        """Put other metadata in place of what it has.

        Raises:
            ApiError: 404, the tenant has no such conversation; so do all methods below.
        """
        await self._set(tenant, conversation_id, {"metadata": dict(metadata)})
        return _there(await self.get(tenant, conversation_id), conversation_id)

    async def delete(self, tenant: str, conversation_id: str) -> bool:
        """Delete it with its items; False when the tenant has no such conversation."""
        statement = delete(conversations).where(*_one(tenant, conversation_id))
        return await self._database.change(statement) == 1

    async def append(
        self, tenant: str, conversation_id: str, new: Sequence[Mapping[str, Any]]
    ) -> list[Item]:
        """Put items at the end, all or none, unmixed with those of others at the same time.

        Args:
            tenant: whose conversation it is.
            conversation_id: which one.
            new: items in OpenAI's form; those without an `id` are given one.

        Returns:
            The items with their ids.

        Raises:
            ApiError: 404, there is no such conversation; 400, it has an item of that id already.
        """
        added = [_with_id(item) for item in new]
        ids = [item["id"] for item in added]

        async def work(connection: AsyncConnection) -> None:
            # The row's lock keeps others out until our items are in.
            counted = (
                update(conversations)
                .where(*_one(tenant, conversation_id))
                .values(num_appended=conversations.c.num_appended + len(added))
                .returning(conversations.c.num_appended)
            )
            end = _there((await connection.execute(counted)).scalar(), conversation_id)
            if not added:
                return
            taken = select(items.c.id).where(*_of(tenant, conversation_id), items.c.id.in_(ids))
            there = (await connection.execute(taken)).scalar()
            if there is not None or len(set(ids)) < len(ids):
                raise ApiError(400, f"items: the id `{there or ids[0]}` is taken", param="items")
            rows = [
                {
                    "tenant": tenant,
                    "conversation_id": conversation_id,
                    "position": position,
                    "id": item["id"],
                    "body": item,
                }
                for position, item in enumerate(added, end - len(added))
            ]
            await connection.execute(insert(items), rows)

        await self._database.write(work)
        return added

    async def items(
        self,
        tenant: str,
        conversation_id: str,
        after: str | None = None,
        limit: int | None = None,
        order: Literal["asc", "desc"] = "asc",
    ) -> list[Item]:
        """Items in the order in which they were appended, or the other way.

        Args:
            tenant: whose conversation it is.
            conversation_id: which one.
            after: begin behind the item of this id.
            limit: how many at most; None for all.
            order: `asc` for the oldest first.

        Raises:
            ApiError: 404, there is no such conversation; 400, it has no item `after`.
        """
        wanted = select(items.c.body).where(*_of(tenant, conversation_id)).limit(limit)
        place = items.c.position
        wanted = wanted.order_by(place if order == "asc" else place.desc())

        async def work(connection: AsyncConnection) -> list[Item]:
            bounded = wanted
            if after is not None:
                start = select(place).where(*_of(tenant, conversation_id), items.c.id == after)
                begin = (await connection.execute(start)).scalar()
                if begin is None:
                    raise ApiError(400, f"after: no item `{after}`", param="after")
                bounded = wanted.where(place > begin if order == "asc" else place < begin)
            found = list((await connection.execute(bounded)).scalars())
            if not found:
                exists = select(conversations.c.id).where(*_one(tenant, conversation_id))
                _there((await connection.execute(exists)).scalar(), conversation_id)
            return found

        return await self._database.read(work)

    async def recent(self, tenant: str, conversation_id: str, limit: int) -> Recent:
        """The last items, on one connection with the pins and the summary.

        Raises:
            ApiError: 404, there is no such conversation.
        """
        head = select(conversations).where(*_one(tenant, conversation_id))
        last = select(items.c.body).where(*_of(tenant, conversation_id))
        last = last.order_by(items.c.position.desc()).limit(limit)

        async def work(connection: AsyncConnection) -> Recent:
            row = (await connection.execute(head)).mappings().first()
            row = _there(row, conversation_id)
            found = list((await connection.execute(last)).scalars())
            return Recent(row["pins"], _summary(row), found[::-1])

        return await self._database.read(work)

    async def item(self, tenant: str, conversation_id: str, item_id: str) -> Item | None:
        """One item; None when the tenant has no such item there."""
        wanted = select(items.c.body).where(*_of(tenant, conversation_id), items.c.id == item_id)
        row = await self._database.row(wanted)
        return None if row is None else row["body"]

    async def delete_item(self, tenant: str, conversation_id: str, item_id: str) -> bool:
        """Delete one item; False when the tenant has no such item there."""
        statement = delete(items).where(*_of(tenant, conversation_id), items.c.id == item_id)
        return await self._database.change(statement) == 1

    async def pins(self, tenant: str, conversation_id: str) -> list[str]:
        """Facts that every prompt of the conversation carries."""
        return (await self._row(tenant, conversation_id))["pins"]

    async def set_pins(self, tenant: str, conversation_id: str, pins: Sequence[str]) -> None:
        """Put other facts in place of those."""
        await self._set(tenant, conversation_id, {"pins": list(pins)})

    async def summary(self, tenant: str, conversation_id: str) -> Summary | None:
        """What older items said; None when nothing was summarised."""
        return _summary(await self._row(tenant, conversation_id))

    async def set_summary(self, tenant: str, conversation_id: str, text: str, upto: str) -> None:
        """Keep what the items up to `upto` (an item's id) said, in place of what was kept."""
        await self._set(tenant, conversation_id, {"summary": text, "summary_upto": upto})

    async def _row(self, tenant: str, conversation_id: str) -> RowMapping:
        wanted = select(conversations).where(*_one(tenant, conversation_id))
        return _there(await self._database.row(wanted), conversation_id)

    async def _set(self, tenant: str, conversation_id: str, values: Mapping[str, Any]) -> None:
        statement = update(conversations).where(*_one(tenant, conversation_id)).values(values)
        _there(await self._database.change(statement) or None, conversation_id)


def _summary(row: RowMapping) -> Summary | None:
    return None if row["summary"] is None else Summary(row["summary"], row["summary_upto"])


def _one(tenant: str, conversation_id: str) -> tuple[Any, Any]:
    return conversations.c.tenant == tenant, conversations.c.id == conversation_id


def _of(tenant: str, conversation_id: str) -> tuple[Any, Any]:
    return items.c.tenant == tenant, items.c.conversation_id == conversation_id


def _there(found: T | None, conversation_id: str) -> T:
    if found is None:
        raise ApiError(
            404,
            f"Conversation with id '{conversation_id}' not found.",
            param="conversation",
            code="conversation_not_found",
        )
    return found


def _with_id(item: Mapping[str, Any]) -> Item:
    kind = item.get("type", "message")
    return {"id": item.get("id") or new_id(_PREFIXES.get(kind, "msg")), **_without_id(item)}


def _without_id(item: Mapping[str, Any]) -> Item:
    return {name: value for name, value in item.items() if name != "id"}
