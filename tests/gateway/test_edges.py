"""What surrounds answers: keys, pages of other origins, TLS, proxies, feedback, state, numbers."""

import asyncio
import shutil
import socket
import sqlite3
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.opened import with_database
from tests.gateway.scripted import MODEL, Engine, Live, with_gateway

from dialoop.core.errors import UserError
from dialoop.core.events import Event, ignore
from dialoop.gateway import run
from dialoop.gateway.keys import KeyLimits
from dialoop.gateway.spec import GatewayJob, ReloadJob
from dialoop.gateway.store.feedback import Feedback
from dialoop.gateway.store.keys import Keys
from dialoop.gateway.store.usage import Usage

Json = dict[str, Any]
CHAT: Json = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
PAGE = "https://desk.example.com"


def make_key(folder: Path, *scopes: str, **settings: Any) -> dict[str, str]:
    """The header of a new key."""
    models = settings.get("models")
    tenant = settings.get("tenant", "default")

    async def work(database: Any) -> str:
        made = await Keys(database).create(
            "test", tenant, scopes or ("chat",), models, KeyLimits(), None
        )
        return made[1]

    secret = with_database(f"sqlite:///{folder}/gateway.db", work)
    return {"authorization": f"Bearer {secret}"}


async def chat(live: Live, **headers: str) -> httpx.Response:
    return await live.http.post("/v1/chat/completions", json=CHAT, headers=headers)


def test_pages_of_an_origin_that_is_named_may_ask(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        asked = {"origin": PAGE, "access-control-request-method": "POST"}
        allowed = await live.http.options("/v1/chat/completions", headers=asked)
        assert (allowed.status_code, allowed.content) == (204, b"")
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        answer = await chat(live, origin=PAGE)
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "origin"
        refused = await live.http.post("/v1/chat/completions", json={}, headers={"origin": PAGE})
        assert refused.status_code == 400
        assert refused.headers["access-control-allow-origin"] == PAGE, "or no page can read why"
        for headers in ({"origin": PAGE + ".evil.org"}, {"origin": "null"}, {}):
            other = await chat(live, **headers)
            assert not [name for name in other.headers if name.startswith("access-control")]
        other = await live.http.options("/v1/models", headers={"origin": "https://evil.org"})
        assert other.status_code == 405

    with_gateway(tmp_path, work, cors_origins=[PAGE])


def test_pages_of_all_origins_may_ask_where_it_says_so(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        answer = await chat(live, origin="https://anyone.org")
        assert answer.headers["access-control-allow-origin"] == "*"

    with_gateway(tmp_path, work, cors_origins=["*"])


def test_a_preflight_needs_no_key_and_a_request_does(tmp_path: Path) -> None:
    key = make_key(tmp_path)

    async def work(live: Live) -> None:
        headers = {"origin": PAGE, "access-control-request-method": "POST"}
        asked = await live.http.options("/v1/chat/completions", headers=headers)
        assert asked.status_code == 204
        assert (await chat(live, origin=PAGE)).status_code == 401
        assert (await chat(live, **key)).status_code == 200

    with_gateway(tmp_path, work, cors_origins=[PAGE], require_keys=True)


def test_https_with_a_certificate_of_one_s_own(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=us"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "k.pem", "-out", "c.pem"]
    command = [openssl, *words.split(), *files]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    certificate, key = str(tmp_path / "c.pem"), str(tmp_path / "k.pem")

    async def work(live: Live) -> None:
        trusting = ssl.create_default_context(cafile=certificate)
        url = live.url.replace("http://", "https://")
        async with httpx.AsyncClient(base_url=url, verify=trusting) as client:
            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert answer.json()["choices"][0]["message"]["content"] == "Hello there"
        async with httpx.AsyncClient(base_url=url) as client:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await client.get("/live")
        with pytest.raises(httpx.HTTPError):
            await live.http.get("/live")  # plain HTTP is not answered

    with_gateway(tmp_path, work, tls_certificate=certificate, tls_key=key)


@pytest.mark.parametrize(("proxies", "client"), [(["127.0.0.1"], "203.0.113.9"), ([], "127.0.0.1")])
def test_only_a_trusted_proxy_is_believed(tmp_path: Path, proxies: list[str], client: str) -> None:
    async def work(live: Live) -> None:
        headers = {"x-forwarded-for": "198.51.100.7, 203.0.113.9"}
        answer = await chat(live, **headers)
        trace = live.worker.app.parts.stores.books.find("default", answer.headers["x-request-id"])
        assert trace is not None
        assert trace.body["client"] == client

    with_gateway(tmp_path, work, trusted_proxies=proxies)


def test_feedback_is_tied_to_an_answer_of_one_s_own_tenant(tmp_path: Path) -> None:
    ours = make_key(tmp_path, "chat", "feedback")
    theirs = make_key(tmp_path, "chat", "feedback", tenant="other")
    no_scope = make_key(tmp_path, "chat")

    async def work(live: Live) -> None:
        answer = await chat(live, **ours)
        name = answer.headers["x-request-id"]
        body = {"request_id": name, "thumb": "down", "corrected": "At nine", "message_index": 2}

        async def say(key: Json, **changes: Any) -> httpx.Response:
            return await live.http.post("/v1/feedback", json=body | changes, headers=key)

        found = (await say(ours)).json()
        assert body.items() <= found.items()
        assert (found["object"], len(found["trace_id"])) == ("feedback", 32)
        await live.worker.app.parts.stores.books.flush()
        assert (await say(ours, thumb="up")).status_code == 200, "when the trace is written, too"
        kept = await Feedback(live.worker.app.parts.database).list("default")
        assert {one.request_id for one in kept} == {name}
        assert {(one.thumb, one.corrected) for one in kept} == {
            ("down", "At nine"),
            ("up", "At nine"),
        }
        assert (await say(theirs)).status_code == 404
        assert (await say(no_scope)).status_code == 403
        assert (await say({})).status_code == 401
        for wrong, param in (
            ({"thumb": "sideways"}, "thumb"),
            ({"request_id": 7}, "request_id"),
            ({"request_id": "unknown"}, "request_id"),
            ({"message_index": -1}, "message_index"),
            ({"corrected": "x" * 100_001}, "corrected"),
            ({"stars": 5}, "stars"),
            ({"thumb": None, "corrected": None}, "thumb"),
        ):
            refused = await say(ours, **wrong)
            assert refused.status_code in (400, 404)
            assert refused.json()["error"]["param"] == param

    with_gateway(tmp_path, work, require_keys=True)


def test_usage_waits_for_a_database_that_is_held_and_no_answer_does(tmp_path: Path) -> None:
    key = make_key(tmp_path)

    async def work(live: Live) -> None:
        parts = live.worker.app.parts
        holder = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        for _ in range(5):
            assert (await chat(live, **key)).status_code == 200
        assert time.monotonic() - began < 2
        await parts.stores.books.flush()
        assert len(parts.stores.books._traces) == 5, "they wait"
        holder.execute("ROLLBACK")
        holder.close()
        await parts.stores.books.flush()
        (row,) = await Usage(parts.database).report("default", "2000-01-01", "9999-12-31")
        assert (row.totals.requests, row.totals.prompt_tokens) == (5, 35)
        assert not parts.stores.books._traces

    with_gateway(tmp_path, work, require_keys=True, database_s=0.3)


def test_without_keys_nobody_needs_one(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        assert (await chat(live)).status_code == 200
        assert (await chat(live, authorization="Bearer anything")).status_code == 200
        assert (await live.http.get("/v1/models")).json()["data"][0]["id"] == MODEL

    with_gateway(tmp_path, work)


def test_what_a_key_may_not_name_it_does_not_see(tmp_path: Path) -> None:
    key = make_key(tmp_path, models=["other"])

    async def work(live: Live) -> None:
        found = await live.http.get("/v1/models", headers=key)
        assert [card["id"] for card in found.json()["data"]] == ["other"]
        refused = await chat(live, **key)
        assert refused.status_code == 403
        assert not live.engine.asked

    versions = {"versions": [{"model": MODEL}]}
    models = {MODEL: versions, "other": versions}
    with_gateway(tmp_path, work, require_keys=True, models=models)


def test_state_is_told_without_a_key(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        for path in ("/live", "/health/live"):
            assert (await live.http.get(path)).json() == {"status": "alive"}
        for path in ("/ready", "/health", "/health/ready"):
            found = (await live.http.get(path)).json()
            assert found == {"status": "ready", "models": {MODEL: True}}
        page = await live.http.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        live.worker.app.is_draining = True
        draining = await live.http.get("/ready")
        assert (draining.status_code, draining.headers["retry-after"]) == (503, "2")
        assert draining.headers["connection"] == "close"
        assert (await live.http.get("/live")).status_code == 200

    with_gateway(tmp_path, work, require_keys=True)


def test_without_an_engine_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        found = await live.http.get("/ready")
        for _ in range(100):
            if found.status_code == 503:
                break
            await asyncio.sleep(0.05)
            found = await live.http.get("/ready")
        assert found.status_code == 503
        assert found.json()["error"]["code"] == "engine_unavailable"
        assert (await live.http.get("/live")).status_code == 200

    health = {"probe": "models", "interval_s": 0.05, "timeout_s": 0.2, "num_failures": 1}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with_gateway(tmp_path, work, engines=[url], health=health)


def total(page: str, name: str, **labels: str) -> float:
    """The sum of a page's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_gateway_of_two_workers(tmp_path: Path) -> None:
    """The first key is told once; numbers add up; what cannot be changed is refused by name."""
    engine = Engine()
    told: list[Event] = []

    async def serve(work: Any) -> None:
        server = await asyncio.start_server(engine.answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        job = GatewayJob(
            port=port,
            workers=2,
            engines=({"url": url, "api_key": "sk-engine"},),  # pyright: ignore[reportArgumentType]
            models={MODEL: {"versions": [{"model": MODEL}]}},  # pyright: ignore[reportArgumentType]
            database=f"sqlite:///{tmp_path}/gateway.db",
            health={"probe": "none"},  # pyright: ignore[reportArgumentType]
            traces={"access_log": False},  # pyright: ignore[reportArgumentType]
        )
        parent = run.Parent(job, told.append)
        running = asyncio.create_task(parent.run())
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                async with asyncio.timeout(60):
                    while not any("serving at" in str(event) for event in told):
                        assert not running.done(), running.exception()
                        await asyncio.sleep(0.05)
                await work(client, job)
        finally:
            parent._ask_to_stop()
            await running
            server.close()

    async def first(client: httpx.AsyncClient, job: GatewayJob) -> None:
        (note,) = [str(event) for event in told if "first key" in str(event)]
        secret = note[note.index("sk-dl-") :].split("'")[0].split('"')[0]
        key = {"authorization": f"Bearer {secret}"}
        for _ in range(40):
            headers = key | {"connection": "close"}
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 200
        assert "authorization: bearer sk-engine" in engine.heads[-1]
        for _ in range(4):  # whichever worker is asked
            page = (await client.get("/metrics", headers={"connection": "close"})).text
            chats = {"path": "/v1/chat/completions", "status": "200"}
            assert total(page, "dialoop_gateway_requests_total", **chats) == 40
            tokens = {"model": MODEL, "kind": "completion"}
            assert total(page, "dialoop_gateway_tokens_total", **tokens) == 200
        plain = job.model_dump() | {"models": {"new": {"versions": [{"model": MODEL}]}}}
        changed = await asyncio.to_thread(run.reload, ReloadJob.model_validate(plain), ignore)
        assert changed.changed == ["models"]
        for _ in range(6):
            headers = key | {"connection": "close"}
            found = (await client.get("/v1/models", headers=headers)).json()
            assert [card["id"] for card in found["data"]] == ["new"]
        for name, value in (("workers", 3), ("require_keys", False), ("database_s", 9.0)):
            other = ReloadJob.model_validate(plain | {name: value})
            with pytest.raises(UserError, match=f"{name}: a running gateway does not change it"):
                await asyncio.to_thread(run.reload, other, ignore)

    async def again(client: httpx.AsyncClient, job: GatewayJob) -> None:
        assert not [event for event in told if "first key" in str(event)]
        assert (await client.get("/v1/models")).status_code == 401

    asyncio.run(serve(first))
    told.clear()
    asyncio.run(serve(again))
