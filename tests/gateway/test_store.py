"""What is kept, on both databases: one suite for every subject, and isolation of tenants."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from tests.gateway.opened import with_database

from dialoop.core.errors import UserError
from dialoop.gateway.database import Database
from dialoop.gateway.keys import SCOPES, KeyLimits
from dialoop.gateway.store import responses as responses_module
from dialoop.gateway.store import traces as traces_module
from dialoop.gateway.store.audit import Audit
from dialoop.gateway.store.conversations import Conversations, Summary
from dialoop.gateway.store.feedback import Feedback
from dialoop.gateway.store.keys import Keys
from dialoop.gateway.store.responses import Responses
from dialoop.gateway.store.tables import items, keys, metadata, schema
from dialoop.gateway.store.traces import Trace, Traces
from dialoop.gateway.store.usage import Usage, UsageTotals
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from pathlib import Path

HELLO = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "你好\0"}]}


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def texts(found: list[dict[str, Any]]) -> list[str]:
    return [item["content"] for item in found]


# Keys


def test_a_key_is_kept_without_its_secret(url: str) -> None:
    async def work(database: Database) -> None:
        limits = KeyLimits(requests_per_minute=60, concurrent=2)
        key, secret = await Keys(database).create(
            "app", "acme", ["chat", "embed"], ["small"], limits, 2e9
        )
        record = await Keys(database).get("acme", key.id)
        assert record is not None
        assert record.key == key
        assert key.limits == limits
        assert key.models == {"small"}
        assert secret.startswith(record.prefix)
        assert len(record.prefix) == 12
        (row,) = await database.rows(select(keys))
        assert secret not in str(dict(row))
        assert secret.removeprefix("sk-dl-")[6:] not in str(dict(row))
        assert len(secret) == 6 + 43  # 256 bits in base64

    with_database(url, work)


def test_secrets_are_all_different(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        made = [await Keys(database).create("k", "t", ["chat"]) for _ in range(20)]
        assert len({secret for _, secret in made}) == 20
        assert len({secret[:12] for _, secret in made}) == 20

    with_database(f"sqlite:///{tmp_path}/gateway.db", work)


def test_any_change_of_a_key_changes_the_generation(url: str) -> None:
    async def work(database: Database) -> None:
        all_keys = Keys(database)
        seen = [await all_keys.generation()]
        key, _ = await all_keys.create("app", "acme", ["chat"])
        seen.append(await all_keys.generation())
        assert await all_keys.update_limits("acme", key.id, KeyLimits(tokens_per_day=5))
        seen.append(await all_keys.generation())
        assert await all_keys.all_active() == [(await all_keys.list("acme"))[0].key]
        assert await all_keys.revoke("acme", key.id)
        seen.append(await all_keys.generation())
        assert len(set(seen)) == 4
        assert await all_keys.all_active() == []
        assert not await all_keys.revoke("acme", key.id)
        assert not await all_keys.update_limits("acme", key.id, KeyLimits())
        (record,) = await all_keys.list("acme")
        assert record.key.limits.tokens_per_day == 5
        assert record.revoked_at is not None
        assert time.time() - record.revoked_at < 60

    with_database(url, work)


@pytest.mark.parametrize(
    ("scopes", "words"), [(["chat", "fly"], "unknown scope `fly`"), ([], "is for nothing")]
)
def test_scopes_that_are_refused(tmp_path: Path, scopes: list[str], words: str) -> None:
    async def work(database: Database) -> None:
        with pytest.raises(UserError, match=words):
            await Keys(database).create("app", "acme", scopes)

    with_database(f"sqlite:///{tmp_path}/gateway.db", work)


def test_the_first_key_is_made_once_by_any_number_of_processes(url: str) -> None:
    async def work() -> None:
        opened = [await Database.open(url, 10.0) for _ in range(4)]
        made = await asyncio.gather(*(Keys(database).create_first() for database in opened))
        (first,) = [found for found in made if found is not None]
        assert first[0].scopes == SCOPES
        assert [record.key for record in await Keys(opened[0]).list_all()] == [first[0]]
        assert await Keys(opened[0]).revoke(first[0].tenant, first[0].id)
        assert await Keys(opened[1]).create_first() is None
        for database in opened:
            await database.close()

    asyncio.run(work())


# Usage


def test_usage_adds_up(url: str) -> None:
    async def work(database: Database) -> None:
        key, _ = await Keys(database).create("app", "acme", ["chat"])
        usage = Usage(database)
        await usage.add([])
        await usage.add([(key.id, "2026-01-31", 1, 10, 5, 3), (key.id, "2026-02-01", 1, 1, 1, 0)])
        await usage.add(
            [(key.id, "2026-02-01", 2, 2**40, 2, 1), (key.id, "2026-02-01", 1, 1, 1, 1)]
        )
        assert await usage.totals(key.id, "2026-02-01") == UsageTotals(4, 2**40 + 2, 4, 2)
        assert await usage.totals(key.id, "2026-01-01") == UsageTotals(5, 2**40 + 12, 9, 5)
        assert await usage.totals(key.id, "2026-02-02") == UsageTotals()
        days = await usage.report("acme", "2026-01-01", "2026-01-31")
        assert [(day.key_name, day.day, day.totals) for day in days] == [
            ("app", "2026-01-31", UsageTotals(1, 10, 5, 3))
        ]
        assert len(await usage.report("acme", "2026-01-31", "2026-02-01")) == 2

    with_database(url, work)


def test_several_keys_are_summed_together(url: str) -> None:
    async def work(database: Database) -> None:
        usage = Usage(database)
        await usage.add([(key_id, f"2026-01-0{n}", 1, n, 1, 1) for key_id in "abc" for n in (1, 2)])
        found = await usage.totals_by_key(["a", "b", "z"], "2026-01-01")
        assert found == dict.fromkeys("ab", UsageTotals(2, 3, 2, 2))
        assert await usage.totals_by_key(["c"], "2026-01-02") == {"c": UsageTotals(1, 2, 1, 1)}
        assert await usage.totals_by_key([], "2026-01-01") == {}

    with_database(url, work)


def test_usage_that_is_added_at_once_is_all_counted(url: str) -> None:
    async def work(database: Database) -> None:
        usage = Usage(database)
        days = [("a", "2026-01-01", 1, 1, 1, 1), ("b", "2026-01-01", 1, 1, 1, 1)]
        adding = [usage.add(days if n % 2 else reversed(days)) for n in range(40)]
        await asyncio.gather(*adding)
        for key_id in "ab":
            assert await usage.totals(key_id, "2026-01-01") == UsageTotals(40, 40, 40, 40)

    with_database(url, work, timeout_s=20.0)


# Conversations


def test_a_conversation_is_kept_in_order(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Conversations(database)
        new = await kept.create("acme", {"topic": "returns"})
        assert await kept.get("acme", new.id) == new
        first = await kept.append("acme", new.id, [HELLO, {"type": "function_call", "name": "f"}])
        assert [item["id"].split("_")[0] for item in first] == ["msg", "fc"]
        second = await kept.append("acme", new.id, [{**message("3"), "id": "msg_mine"}])
        assert second[0]["id"] == "msg_mine"
        assert await kept.append("acme", new.id, []) == []
        everything = first + second
        assert await kept.items("acme", new.id) == everything
        assert await kept.items("acme", new.id, order="desc") == everything[::-1]
        assert await kept.items("acme", new.id, after=first[0]["id"]) == everything[1:]
        assert await kept.items("acme", new.id, limit=2) == everything[:2]
        back = await kept.items("acme", new.id, after="msg_mine", limit=1, order="desc")
        assert back == [everything[1]]
        assert await kept.item("acme", new.id, "msg_mine") == second[0]
        assert await kept.delete_item("acme", new.id, first[0]["id"])
        assert not await kept.delete_item("acme", new.id, first[0]["id"])
        last = await kept.append("acme", new.id, [message("4")])
        assert await kept.items("acme", new.id) == everything[1:] + last

    with_database(url, work)


def test_items_keep_the_order_of_their_fields_and_every_character(url: str) -> None:
    odd = {"type": "message", "z": 1, "a": ["\0", "\u2028", "\U0001f600", -(2**53), 0.1, None]}

    async def work(database: Database) -> None:
        kept = Conversations(database)
        new = await kept.create("acme", {})
        (item,) = await kept.append("acme", new.id, [odd])
        (found,) = await kept.items("acme", new.id)
        assert list(found.items()) == [("id", item["id"]), *odd.items()]

    with_database(url, work)


def test_appending_at_once_mixes_nothing_and_loses_nothing(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Conversations(database)
        new = await kept.create("acme", {})
        adding = [
            kept.append("acme", new.id, [message(f"{n}a"), message(f"{n}b")]) for n in range(25)
        ]
        await asyncio.gather(*adding)
        said = texts(await kept.items("acme", new.id))
        assert len(set(said)) == 50
        pairs = zip(said[::2], said[1::2], strict=True)
        assert all((a[:-1], a[-1], b[-1]) == (b[:-1], "a", "b") for a, b in pairs)

    with_database(url, work, timeout_s=20.0)


def test_an_id_that_is_taken_is_refused_and_nothing_appended(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Conversations(database)
        new = await kept.create("acme", {})
        mine = {**message("1"), "id": "msg_1"}
        await kept.append("acme", new.id, [mine])
        for added in ([message("2"), mine], [{"id": "x", "n": 1}, {"id": "x", "n": 2}]):
            with pytest.raises(ApiError, match="is taken") as caught:
                await kept.append("acme", new.id, added)
            assert caught.value.status == 400
        assert await kept.items("acme", new.id) == [mine]

    with_database(url, work)


def test_pins_summary_and_metadata_are_replaced(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Conversations(database)
        new = await kept.create("acme", {"a": "1"})
        assert await kept.pins("acme", new.id) == []
        assert await kept.summary("acme", new.id) is None
        await kept.set_pins("acme", new.id, ["order 17", "名字是李雷"])
        await kept.set_summary("acme", new.id, "about returns", "msg_9")
        changed = await kept.update_metadata("acme", new.id, {"b": "2"})
        assert changed.metadata == {"b": "2"}
        assert changed.created_at == new.created_at
        assert await kept.pins("acme", new.id) == ["order 17", "名字是李雷"]
        assert await kept.summary("acme", new.id) == Summary("about returns", "msg_9")

    with_database(url, work)


def test_deleting_a_conversation_deletes_its_items(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Conversations(database)
        gone, stays = await kept.create("acme", {}), await kept.create("acme", {})
        for one in (gone, stays):
            await kept.append("acme", one.id, [HELLO])
        assert await kept.delete("acme", gone.id)
        assert not await kept.delete("acme", gone.id)
        (row,) = await database.rows(select(func.count().label("num")).select_from(items))
        assert row["num"] == 1

    with_database(url, work)


def test_what_is_missing_is_a_404(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Conversations(database)
        new = await kept.create("acme", {})
        assert await kept.items("acme", new.id) == []
        assert await kept.get("acme", "conv_x") is None
        calls = [
            kept.append("acme", "conv_x", [HELLO]),
            kept.append("acme", "conv_x", []),
            kept.items("acme", "conv_x"),
            kept.pins("acme", "conv_x"),
            kept.set_pins("acme", "conv_x", []),
            kept.summary("acme", "conv_x"),
            kept.set_summary("acme", "conv_x", "", ""),
            kept.update_metadata("acme", "conv_x", {}),
        ]
        for call in calls:
            with pytest.raises(ApiError, match="Conversation with id 'conv_x' not found") as caught:
                await call
            assert caught.value.status == 404
        with pytest.raises(ApiError, match="no item `msg_x`") as caught:
            await kept.items("acme", new.id, after="msg_x")
        assert caught.value.status == 400

    with_database(url, work)


# Responses


def test_a_chain_of_responses_is_read_oldest_first(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Responses(database)
        before = None
        for n in "123":
            body = {"id": f"resp_{n}", "output": [message(f"answer {n}")]}
            await kept.put("acme", f"resp_{n}", body, [message(f"ask {n}")], before, "conv_1")
            before = f"resp_{n}"
        said = texts(await kept.chain("acme", "resp_3"))
        assert said == ["ask 1", "answer 1", "ask 2", "answer 2", "ask 3", "answer 3"]
        assert texts(await kept.chain("acme", "resp_1")) == ["ask 1", "answer 1"]
        found = await kept.get("acme", "resp_2")
        assert found is not None
        assert found.body == {"id": "resp_2", "output": [message("answer 2")]}
        assert (found.previous_response_id, found.conversation_id) == ("resp_1", "conv_1")
        assert await kept.input_items("acme", "resp_2") == [message("ask 2")]
        assert await kept.delete("acme", "resp_2")
        assert not await kept.delete("acme", "resp_2")
        assert await kept.get("acme", "resp_2") is None
        with pytest.raises(ApiError, match="Previous response with id 'resp_2' not found"):
            await kept.chain("acme", "resp_3")
        with pytest.raises(ApiError, match="Previous response with id 'resp_9' not found"):
            await kept.chain("acme", "resp_9")

    with_database(url, work)


def test_tenants_with_responses_of_the_same_ids_have_their_own_chains(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Responses(database)
        for tenant in "ab":
            await kept.put(tenant, "resp_1", {"output": []}, [message(f"{tenant} 1")])
            await kept.put(tenant, "resp_2", {"output": []}, [message(f"{tenant} 2")], "resp_1")
        for tenant in "ab":
            said = texts(await kept.chain(tenant, "resp_2"))
            assert said == [f"{tenant} 1", f"{tenant} 2"]

    with_database(url, work)


def test_a_response_is_put_in_place_of_an_earlier_one(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Responses(database)
        await kept.put("acme", "resp_1", {"status": "in_progress", "output": []}, [HELLO])
        await kept.put("acme", "resp_1", {"status": "completed", "output": []}, [HELLO])
        found = await kept.get("acme", "resp_1")
        assert found is not None
        assert found.body["status"] == "completed"

    with_database(url, work)


def test_expired_responses_are_gone(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Responses(database)
        past, future = time.time() - 1, time.time() + 60
        await kept.put("acme", "resp_1", {"output": []}, [HELLO], expires_at=past)
        await kept.put("acme", "resp_2", {"output": []}, [HELLO], "resp_1", expires_at=future)
        assert await kept.get("acme", "resp_1") is None
        assert await kept.input_items("acme", "resp_1") is None
        assert await kept.get("acme", "resp_2") is not None
        with pytest.raises(ApiError, match="'resp_1' not found"):
            await kept.chain("acme", "resp_2")
        assert await kept.prune() == 1
        assert await kept.prune() == 0

    with_database(url, work)


def test_a_chain_is_bounded(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Responses(database)
        rows = [
            {
                "tenant": "acme",
                "id": f"resp_{n}",
                "created_at": 0.0,
                "body": {"output": []},
                "input_items": [message(str(n))],
                "previous_response_id": f"resp_{n - 1}" if n else None,
            }
            for n in range(responses_module.MAX_CHAIN + 1)
        ]
        await database.change(metadata.tables["dialoop_responses"].insert(), rows)
        said = texts(await kept.chain("acme", f"resp_{responses_module.MAX_CHAIN - 1}"))
        assert said == [str(n) for n in range(1000)]
        with pytest.raises(ApiError, match="more than 1000 responses build on one another"):
            await kept.chain("acme", "resp_1000")
        await kept.put("acme", "resp_0", {"output": []}, [], "resp_5")  # a ring
        with pytest.raises(ApiError, match="more than 1000"):
            await kept.chain("acme", "resp_5")

    with_database(url, work, timeout_s=10.0)


# Feedback, audit, traces


def test_feedback_is_listed_newest_first(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Feedback(database)
        one = await kept.put("acme", "req_1", "trace_1", "down", "Better.", "wrong", 2, "u1")
        two = await kept.put("acme", "req_2", thumb="up")
        assert await kept.list("acme") == [two, one]
        assert await kept.list("acme", limit=1) == [two]
        assert await kept.list("acme", since=time.time() + 1) == []
        assert one.id != two.id

    with_database(url, work)


@pytest.mark.parametrize("index", [-1, 2**31])
def test_a_message_that_cannot_be_is_refused(tmp_path: Path, index: int) -> None:
    async def work(database: Database) -> None:
        with pytest.raises(ApiError, match=r"message_index: .* is no place in a dialogue"):
            await Feedback(database).put("acme", "req_1", message_index=index)

    with_database(f"sqlite:///{tmp_path}/gateway.db", work)


def test_audit_is_listed_newest_first(url: str) -> None:
    async def work(database: Database) -> None:
        kept = Audit(database)
        await kept.put("acme", "key_1", "key.create", "key_2", {"name": "app"})
        await kept.put("acme", "command line", "key.revoke", "key_2", {})
        found = await kept.list("acme")
        assert [(row.actor, row.action, row.object, row.detail) for row in found] == [
            ("command line", "key.revoke", "key_2", {}),
            ("key_1", "key.create", "key_2", {"name": "app"}),
        ]
        assert len(await kept.list("acme", limit=1)) == 1
        assert await kept.list("acme", since=time.time() + 1) == []

    with_database(url, work)


def trace(
    request_id: str, tenant: str = "acme", started_at: float = 5.0, status: int = 200
) -> Trace:
    body = {"spans": [{"name": "chat"}]}
    return Trace(request_id, "t", tenant, None, started_at, "m", None, status, body)


def test_traces_are_kept_and_pruned(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces_module, "_PRUNED_TOGETHER", 3)

    async def work(database: Database) -> None:
        kept = Traces(database)
        await kept.add([])
        await kept.add([trace(str(n), started_at=float(n)) for n in range(10)])
        await kept.add([trace("9", status=500), trace("9", started_at=9.0, status=503)])
        assert await kept.get("acme", "9") == trace("9", started_at=9.0, status=503)
        assert await kept.get("acme", "10") is None
        assert [found.request_id for found in await kept.list("acme", 6.0, 3)] == ["9", "8", "7"]
        assert await kept.prune(8.0) == 8
        assert [found.request_id for found in await kept.list("acme")] == ["9", "8"]

    with_database(url, work)


# Isolation


async def everything_of(database: Database, tenant: str, ids: dict[str, str]) -> list[Any]:
    """All that a tenant can read, by its own lists and by ids that may be another's."""
    conversation = ids["conversation"]
    kept = Conversations(database)
    found: list[Any] = [
        await Keys(database).list(tenant),
        await Keys(database).get(tenant, ids["key"]),
        await Usage(database).report(tenant, "0000-00-00", "9999-99-99"),
        await kept.get(tenant, conversation),
        await kept.item(tenant, conversation, ids["item"]),
        await Responses(database).get(tenant, ids["response"]),
        await Responses(database).input_items(tenant, ids["response"]),
        await Feedback(database).list(tenant),
        await Audit(database).list(tenant),
        await Traces(database).list(tenant),
        await Traces(database).get(tenant, ids["request"]),
    ]
    for call in (
        kept.items(tenant, conversation),
        kept.pins(tenant, conversation),
        kept.summary(tenant, conversation),
        Responses(database).chain(tenant, ids["response"]),
    ):
        try:
            found.append(await call)
        except ApiError:
            found.append(None)
    return found


async def fill(database: Database, tenant: str) -> dict[str, str]:
    """One of each thing."""
    key, _ = await Keys(database).create("app", tenant, ["chat"])
    await Usage(database).add([(key.id, "2026-01-01", 1, 1, 1, 1)])
    kept = Conversations(database)
    conversation = await kept.create(tenant, {})
    (item,) = await kept.append(tenant, conversation.id, [HELLO])
    await kept.set_pins(tenant, conversation.id, ["a fact"])
    await kept.set_summary(tenant, conversation.id, "said hello", item["id"])
    await Responses(database).put(tenant, "resp_1", {"output": []}, [HELLO])
    await Feedback(database).put(tenant, "req_1", thumb="up")
    await Audit(database).put(tenant, "a", "b", "c", {})
    await Traces(database).add([trace("req_1", tenant)])
    return {
        "key": key.id,
        "conversation": conversation.id,
        "item": item["id"],
        "response": "resp_1",
        "request": "req_1",
    }


async def attack(database: Database, tenant: str, ids: dict[str, str], action: str) -> Any:
    """Use another tenant's ids as `tenant`."""
    keys_, kept = Keys(database), Conversations(database)
    conversation, item = ids["conversation"], ids["item"]
    responses = Responses(database)
    calls = {
        "limits": lambda: keys_.update_limits(tenant, ids["key"], KeyLimits(tokens_per_day=0)),
        "revoke": lambda: keys_.revoke(tenant, ids["key"]),
        "append": lambda: kept.append(tenant, conversation, [HELLO]),
        "metadata": lambda: kept.update_metadata(tenant, conversation, {"x": "y"}),
        "pins": lambda: kept.set_pins(tenant, conversation, []),
        "summary": lambda: kept.set_summary(tenant, conversation, "no", item),
        "delete item": lambda: kept.delete_item(tenant, conversation, item),
        "delete": lambda: kept.delete(tenant, conversation),
        "put response": lambda: responses.put(tenant, ids["response"], {"output": [1]}, []),
        "build on": lambda: responses.put(tenant, "resp_2", {"output": []}, [], ids["response"]),
        "delete response": lambda: responses.delete(tenant, ids["response"]),
        "feedback": lambda: Feedback(database).put(tenant, ids["request"], thumb="down"),
        "audit": lambda: Audit(database).put(tenant, "x", "y", ids["key"], {}),
        "trace": lambda: Traces(database).add([trace(ids["request"], tenant, status=500)]),
    }
    try:
        return await calls[action]()
    except ApiError as error:
        if error.status != 404:
            raise
        return False


ACTIONS = (
    *("limits", "revoke", "append", "metadata", "pins", "summary", "delete item", "delete"),
    *("put response", "build on", "delete response", "feedback", "audit", "trace"),
)


def test_a_tenant_reads_nothing_of_another(url: str) -> None:
    async def work(database: Database) -> None:
        ids = await fill(database, "a")
        mine = await everything_of(database, "a", ids)
        assert all(mine)
        assert not any(await everything_of(database, "b", ids))

    with_database(url, work)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    actions=st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=8),
    tenants=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
        min_size=2,
        max_size=2,
        unique=True,
    ),
)
def test_whatever_a_tenant_does_another_notices_nothing(
    url: str, actions: list[str], tenants: list[str]
) -> None:
    """Tenants by any names, actions in any order."""
    a, b = tenants

    async def work(database: Database) -> None:
        for table in reversed(metadata.sorted_tables):
            if table.name not in {schema.name, "dialoop_counters"}:
                await database.change(table.delete())
        ids = await fill(database, a)
        before = await everything_of(database, a, ids)
        for action in actions:
            await attack(database, b, ids, action)
        assert await everything_of(database, a, ids) == before
        # What it could make under another's id is its own, and reaches nothing.
        if "build on" in actions and "put response" not in actions:
            with pytest.raises(ApiError):
                await Responses(database).chain(b, "resp_2")

    with_database(url, work, timeout_s=10.0)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_same_actions_by_the_owner_do_something(tmp_path: Path, action: str) -> None:
    """Or the test above would prove nothing."""

    async def work(database: Database) -> None:
        ids = await fill(database, "a")
        before = await everything_of(database, "a", ids)
        await attack(database, "a", ids, action)
        after = await everything_of(database, "a", ids)
        if action == "build on":
            assert await Responses(database).chain("a", "resp_2") == [HELLO]
        else:
            assert after != before

    with_database(f"sqlite:///{tmp_path}/gateway.db", work)


# Several processes

WRITER = """\
import asyncio, sys
from dialoop.gateway.database import Database
from dialoop.gateway.store.conversations import Conversations
from dialoop.gateway.store.usage import Usage

async def work(url, name, conversation):
    database = await Database.open(url, 20.0)
    for n in range(40):
        await Conversations(database).append("acme", conversation, [{"content": f"{name} {n}"}])
        await Usage(database).add([("key", "2026-01-01", 1, 1, 1, 1)])
    await database.close()

asyncio.run(work(*sys.argv[1:]))
"""


def test_four_processes_that_write_at_once_lose_nothing(url: str) -> None:
    async def begin(database: Database) -> str:
        return (await Conversations(database).create("acme", {})).id

    async def end(database: Database) -> None:
        assert await Usage(database).totals("key", "2026-01-01") == UsageTotals(*[160] * 4)
        said = texts(await Conversations(database).items("acme", conversation))
        for name in "abcd":
            assert [text for text in said if text[0] == name] == [f"{name} {n}" for n in range(40)]

    conversation = with_database(url, begin)
    command = [sys.executable, "-c", WRITER, url]
    writers = [subprocess.Popen([*command, name, conversation]) for name in "abcd"]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    with_database(url, end)
