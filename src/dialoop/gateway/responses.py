"""The Responses API, over the chats that engines answer.

Responses are kept for `traces.keep_days` unless `store` is false; one that was cut is kept as it
was told, with status `failed`. While the database is away a response is kept late, and one that
goes on from another (`previous_response_id`) cannot be answered: status 503.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from dialoop.gateway import responses_ask
from dialoop.gateway.conversations import page, paging
from dialoop.gateway.history import Write
from dialoop.gateway.responses_form import ResponseForm
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dialoop.gateway.app import App, Handler
    from dialoop.gateway.responses_ask import Asked
    from dialoop.gateway.store.responses import Responses, StoredResponse
    from dialoop.gateway.visit import Visit

Json = dict[str, Any]

_PATH = "/v1/responses"
_DAY_S = 86_400.0


class ResponsesApi:
    """Answers under `/v1/responses`.

    Args:
        app: for what it works with now.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Methods, paths and what answers them."""
        one = _PATH + "/{id}"
        return [
            ("POST", _PATH, self._create),
            ("POST", _PATH + "/compact", self._compact),
            ("GET", one, self._get),
            ("DELETE", one, self._delete),
            ("POST", one + "/cancel", self._cancel),
            ("GET", one + "/input_items", self._input_items),
        ]

    async def _create(self, visit: Visit) -> None:
        parts = self._app.parts
        body = await visit.json(parts.job.sizes.max_body_bytes, parts.job.patience.client_s)
        if not isinstance(body.get("model"), str):
            raise bad("model", "the name of a model is required")
        if visit.key:
            visit.key.allow("chat")
        asked = responses_ask.read(body)
        table = parts.stores.history.responses
        before = await table.chain(visit.tenant, asked.previous) if asked.previous else []
        strategy = parts.contexts.strategy(parts.pool.find(body["model"]))
        policy = "disabled" if strategy == "refuse" else "auto"
        put = self._putting(visit, asked) if asked.is_stored else None
        form = ResponseForm(asked, before, policy, put)
        await self._app.completions.serve(visit, "chat", asked.chat, form)

    def _putting(self, visit: Visit, asked: Asked) -> Callable[[Json], Awaitable[bool]]:
        """What keeps a response."""
        parts = self._app.parts
        history, days = parts.stores.history, parts.job.traces.keep_days
        conversation = asked.chat.get("conversation")

        async def put(resource: Json) -> bool:
            work = partial(
                history.responses.put,
                visit.tenant,
                resource["id"],
                resource,
                asked.new,
                asked.previous,
                conversation,
                time.time() + days * _DAY_S,
            )
            return await history.write(Write(work))

        return put

    async def _get(self, visit: Visit) -> None:
        if b"stream=true" in visit.scope["query_string"]:
            raise bad("stream", "a response that was made cannot be streamed again")
        found = await self._found(visit)
        await visit.reply.json(found.body)

    async def _delete(self, visit: Visit) -> None:
        table, name = self._open(visit), visit.names["id"]
        if not await table.delete(visit.tenant, name):
            raise _missing(name)
        await visit.reply.json({"id": name, "object": "response.deleted", "deleted": True})

    async def _compact(self, _: Visit) -> None:
        raise ApiError(
            404,
            "responses are not compacted: the context policy of a model (`models.NAME.context`) "
            "keeps dialogues within its window",
        )

    async def _cancel(self, visit: Visit) -> None:
        await self._found(visit)
        raise ApiError(400, "only background responses can be cancelled, and there are none here")

    async def _input_items(self, visit: Visit) -> None:
        limit, order, after = paging(visit)
        found = await self._open(visit).input_items(visit.tenant, visit.names["id"])
        if found is None:
            raise _missing(visit.names["id"])
        wanted = found if order == "asc" else found[::-1]
        if after is not None:
            ids = [item["id"] for item in wanted]
            if after not in ids:
                raise bad("after", f"no item `{after[:100]}`")
            wanted = wanted[ids.index(after) + 1 :]
        await visit.reply.json(page(wanted[: limit + 1], limit))

    def _open(self, visit: Visit) -> Responses:
        if visit.key:
            visit.key.allow("chat")
        return self._app.parts.stores.history.responses

    async def _found(self, visit: Visit) -> StoredResponse:
        found = await self._open(visit).get(visit.tenant, visit.names["id"])
        if found is None:
            raise _missing(visit.names["id"])
        return found


def _missing(name: str) -> ApiError:
    message = f"Response with id '{name[:100]}' not found."
    return ApiError(404, message, code="response_not_found")
