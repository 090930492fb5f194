"""The Conversations API, read by the official client's own models in their strict form."""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.conversations import ConversationItemList, Message
from tests.gateway.scripted import MODEL, Live, with_gateway


def said(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


def test_a_conversation_lives_and_dies(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        table = live.client.conversations
        made = await table.create(metadata={"topic": "lamps"}, items=[said("a")])
        assert (await table.retrieve(made.id)) == made
        assert made.metadata == {"topic": "lamps"}
        changed = await table.update(made.id, metadata={})
        assert changed.metadata == {}
        gone = await table.delete(made.id)
        assert (gone.deleted, gone.object) == (True, "conversation.deleted")
        for call in (table.retrieve, table.delete, table.items.list):
            with pytest.raises(openai.NotFoundError) as caught:
                await call(made.id)
            assert made.id in str(caught.value)

    with_gateway(tmp_path, work)


def test_items_are_listed_page_by_page(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        made = await live.client.conversations.create()
        path = f"/v1/conversations/{made.id}/items"
        empty = (await live.http.get(path)).json()
        ConversationItemList.model_validate(empty, strict=True)
        texts = [f"{n}" for n in range(7)]
        new = (await live.http.post(path, json={"items": [said(one) for one in texts]})).json()
        ConversationItemList.model_validate(new, strict=True)
        assert [item["id"] for item in new["data"]][0::6] == [new["first_id"], new["last_id"]]
        items = live.client.conversations.items
        for order, wanted in (("asc", texts), ("desc", texts[::-1])):
            listed = items.list(made.id, limit=3, order=order)  # pyright: ignore[reportArgumentType]
            assert [one.content[0].text async for one in listed] == wanted  # type: ignore[union-attr]
        one = (await live.http.get(f"{path}/{new['first_id']}")).json()
        assert Message.model_validate(one, strict=True).content[0].text == "0"  # type: ignore[union-attr]
        assert (await items.delete(new["first_id"], conversation_id=made.id)).id == made.id
        assert (await live.http.get(f"{path}/{new['first_id']}")).status_code == 404
        assert (await live.http.delete(f"{path}/{new['first_id']}")).status_code == 404

    with_gateway(tmp_path, work)


WRONG: list[tuple[str, Any, str]] = [
    ("", {"metadata": {"a": 1}}, "metadata.a: a text of at most 512"),
    ("", {"metadata": {f"{n}": "" for n in range(17)}}, "at most 16 pairs, got 17"),
    ("", {"metadata": {"a" * 65: ""}}, "longer than 64"),
    ("", {"metadata": []}, "metadata: an object"),
    ("", {"colour": 1}, "colour: unknown parameter"),
    ("", {"items": [said("x")] * 21}, "at most 20 items"),
    ("", {"items": [{"type": "mcp_call"}]}, r"items[0].type: items are message"),
    ("", {"items": [{"type": "item_reference", "id": "x"}]}, "not followed"),
    ("", {"items": [{"role": "critic", "content": "x"}]}, "items[0].role"),
    ("", {"items": [{"role": "user", "content": []}]}, "items[0].content: a text or"),
    (
        "",
        {"items": [{"role": "user", "content": [{"type": "input_file"}]}]},
        "a part of type 'input_file'",
    ),
    ("/{id}/items", {}, "items: a list of items"),
    ("/{id}", {}, "metadata: an object is required"),
    ("/{id}/items?limit=0", None, "limit: a whole number from 1 to 100"),
    ("/{id}/items?order=up", None, "order: `asc` or `desc`"),
    ("/{id}/items?after=msg_no", None, "after: no item `msg_no`"),
    ("/{id}/pins", {"pins": [1]}, "pins: a list of texts"),
]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        made = await live.client.conversations.create()
        for path, body, message in WRONG:
            url = "/v1/conversations" + path.replace("{id}", made.id)
            method = "GET" if body is None else "PUT" if "pins" in path else "POST"
            answer = await live.http.request(method, url, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, path, bool(error["param"])) == (400, path, True)
            assert message in error["message"]

    with_gateway(tmp_path, work)


def test_tenants_and_scopes_are_kept_apart(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        from dialoop.gateway.store.keys import Keys

        keys = Keys(live.worker.app.parts.database)
        secrets: list[str] = []
        for tenant, scopes in (("a", {"conversations"}), ("b", {"conversations"}), ("a", {"chat"})):
            _, secret = await keys.create("n", tenant, frozenset(scopes))
            secrets.append(secret)
        first, other, weak = ({"authorization": f"Bearer {one}"} for one in secrets)
        await live.worker.app.parts.stores.keys.refresh()  # type: ignore[union-attr]
        made = (await live.http.post("/v1/conversations", json={}, headers=first)).json()
        path = f"/v1/conversations/{made['id']}"
        assert (await live.http.get(path, headers=first)).status_code == 200
        assert (await live.http.get(path, headers=other)).status_code == 404
        assert (await live.http.get(path + "/items", headers=other)).status_code == 404
        assert (
            await live.http.put(path + "/pins", json={"pins": []}, headers=other)
        ).status_code == 404
        assert (await live.http.delete(path, headers=other)).status_code == 404
        assert (await live.http.get(path, headers=weak)).status_code == 403
        assert (await live.http.get(path)).status_code == 401

    with_gateway(tmp_path, work, require_keys=True)


def test_a_tenant_s_responses_and_dialogues_are_its_own(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        from dialoop.gateway.store.keys import Keys

        keys = Keys(live.worker.app.parts.database)
        scopes = ("chat", "conversations")
        secrets = [(await keys.create("n", tenant, scopes))[1] for tenant in ("a", "b")]
        own, other = ({"authorization": f"Bearer {one}"} for one in secrets)
        await live.worker.app.parts.stores.keys.refresh()  # type: ignore[union-attr]
        made = (await live.http.post("/v1/conversations", json={}, headers=own)).json()["id"]
        body: Any = {"model": MODEL, "input": "Hi"}
        first = (await live.http.post("/v1/responses", json=body, headers=own)).json()["id"]
        for method, end in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/input_items"),
            ("POST", "/cancel"),
        ):
            answer = await live.http.request(method, f"/v1/responses/{first}{end}", headers=other)
            assert answer.status_code == 404
        for more, status in (
            ({"previous_response_id": first}, 400),
            ({"conversation": made}, 404),
        ):
            for headers, wanted in ((other, status), (own, 200)):
                answer = await live.http.post("/v1/responses", json=body | more, headers=headers)
                assert answer.status_code == wanted
        chat: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        path = "/v1/chat/completions"
        chat |= {"conversation": made}
        assert (await live.http.post(path, json=chat, headers=other)).status_code == 404
        assert (await live.http.post(path, json=chat, headers=own)).status_code == 200
        assert len(live.engine.asked) == 4

    with_gateway(tmp_path, work, require_keys=True)
