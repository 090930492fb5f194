"""The Conversations API: dialogues that are kept, their items, and facts that are always sent.

Source: OpenAI's API reference of 2026. Ours beside it: `GET` and `PUT /v1/conversations/{id}/pins`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import parse_qs

from dialoop.gateway import items
from dialoop.gateway.call import as_object
from dialoop.gateway.dialogue import read_pins
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dialoop.gateway.app import App, Handler
    from dialoop.gateway.store.conversations import Conversation, Conversations
    from dialoop.gateway.visit import Visit

Json = dict[str, Any]

_MAX_NEW = 20
"""Items of one request, as at OpenAI."""
_PATH = "/v1/conversations"


class ConversationsApi:
    """Answers under `/v1/conversations`.

    Args:
        app: for what it works with now.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Methods, paths and what answers them."""
        one, its = _PATH + "/{id}", _PATH + "/{id}/items"
        return [
            ("POST", _PATH, self._create),
            ("GET", one, self._get),
            ("POST", one, self._update),
            ("DELETE", one, self._delete),
            ("POST", its, self._append),
            ("GET", its, self._list),
            ("GET", its + "/{item}", self._item),
            ("DELETE", its + "/{item}", self._delete_item),
            ("GET", one + "/pins", self._pins),
            ("PUT", one + "/pins", self._pin),
        ]

    async def _create(self, visit: Visit) -> None:
        table = self._open(visit)
        body = await self._body(visit, {"metadata", "items"})
        given = body.get("items")
        new = self._read(given) if given else []
        made = await table.create(visit.tenant, read_metadata(body.get("metadata")))
        if new:
            await table.append(visit.tenant, made.id, new)
        await visit.reply.json(_conversation(made))

    async def _get(self, visit: Visit) -> None:
        table = self._open(visit)
        await visit.reply.json(await self._found(table, visit))

    async def _update(self, visit: Visit) -> None:
        table = self._open(visit)
        body = await self._body(visit, {"metadata"})
        if "metadata" not in body:
            raise bad("metadata", "an object is required")
        metadata = read_metadata(body["metadata"])
        made = await table.update_metadata(visit.tenant, visit.names["id"], metadata)
        await visit.reply.json(_conversation(made))

    async def _delete(self, visit: Visit) -> None:
        table = self._open(visit)
        name = visit.names["id"]
        if not await table.delete(visit.tenant, name):
            raise _missing(f"Conversation with id '{name[:100]}' not found.")
        await visit.reply.json({"id": name, "object": "conversation.deleted", "deleted": True})

    async def _append(self, visit: Visit) -> None:
        table = self._open(visit)
        body = await self._body(visit, {"items"})
        new = self._read(body.get("items"))
        await visit.reply.json(page(await table.append(visit.tenant, visit.names["id"], new)))

    async def _list(self, visit: Visit) -> None:
        table = self._open(visit)
        limit, order, after = paging(visit)
        found = await table.items(visit.tenant, visit.names["id"], after, limit + 1, order)
        await visit.reply.json(page(found, limit))

    async def _item(self, visit: Visit) -> None:
        table = self._open(visit)
        found = await table.item(visit.tenant, visit.names["id"], visit.names["item"])
        if found is None:
            raise _missing(f"Item with id '{visit.names['item'][:100]}' not found.")
        await visit.reply.json(found)

    async def _delete_item(self, visit: Visit) -> None:
        table = self._open(visit)
        name = visit.names["item"]
        if not await table.delete_item(visit.tenant, visit.names["id"], name):
            raise _missing(f"Item with id '{name[:100]}' not found.")
        await visit.reply.json(await self._found(table, visit))

    async def _pins(self, visit: Visit) -> None:
        table = self._open(visit)
        pins = await table.pins(visit.tenant, visit.names["id"])
        await visit.reply.json({"object": "conversation.pins", "pins": pins})

    async def _pin(self, visit: Visit) -> None:
        table = self._open(visit)
        pins = read_pins((await self._body(visit, {"pins"})).get("pins"))
        await table.set_pins(visit.tenant, visit.names["id"], pins)
        await visit.reply.json({"object": "conversation.pins", "pins": pins})

    def _open(self, visit: Visit) -> Conversations:
        if visit.key:
            visit.key.allow("conversations")
        return self._app.parts.stores.history.conversations

    async def _found(self, table: Conversations, visit: Visit) -> Json:
        found = await table.get(visit.tenant, visit.names["id"])
        if found is None:
            raise _missing(f"Conversation with id '{visit.names['id'][:100]}' not found.")
        return _conversation(found)

    async def _body(self, visit: Visit, known: set[str]) -> Json:
        job = self._app.parts.job
        body = await visit.json(job.sizes.max_body_bytes, job.patience.client_s)
        if unknown := sorted(body.keys() - known):
            raise bad(unknown[0][:100], f"unknown parameter (known: {', '.join(sorted(known))})")
        return body

    def _read(self, raw: Any) -> list[Json]:
        if not isinstance(raw, list):
            raise bad("items", "a list of items is required")
        if len(cast("list[Any]", raw)) > _MAX_NEW:
            raise bad("items", f"at most {_MAX_NEW} items at once")
        return items.read(raw, "items")


def read_metadata(raw: Any) -> dict[str, str]:
    """Up to 16 pairs of texts, of 64 and 512 characters.

    Raises:
        ApiError: something else.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise bad("metadata", "an object of texts is required")
    found = cast("Json", raw)
    if len(found) > 16:
        raise bad("metadata", f"at most 16 pairs, got {len(found)}")
    for name, value in found.items():
        if len(name) > 64:
            raise bad("metadata", f"`{name[:64]}...` is longer than 64 characters")
        if not isinstance(value, str) or len(value) > 512:
            raise bad(f"metadata.{name}", "a text of at most 512 characters is required")
    return found


def paging(visit: Visit) -> tuple[int, Literal["asc", "desc"], str | None]:
    """Limit, order and start of a list, out of the query.

    Raises:
        ApiError: one of them is wrong.
    """
    query = parse_qs(visit.scope["query_string"].decode("latin-1"))
    last = {name: values[-1] for name, values in query.items()}
    limit, order = last.get("limit", "20"), last.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= 100):
        raise bad("limit", f"a whole number from 1 to 100 is required, got {limit[:20]!r}")
    if order not in ("asc", "desc"):
        raise bad("order", f"`asc` or `desc`, got {order[:20]!r}")
    return int(limit), order, last.get("after")


def page(found: Sequence[Mapping[str, Any]], limit: int | None = None) -> Json:
    """A list object; one item more than `limit` tells that there is more."""
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": len(found) > len(data),
    }


def _conversation(found: Conversation) -> Json:
    head = {"id": found.id, "object": "conversation", "created_at": int(found.created_at)}
    return head | {"metadata": as_object(found.metadata)}


def _missing(message: str) -> ApiError:
    return ApiError(404, message, code="not_found")
