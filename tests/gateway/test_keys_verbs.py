"""`dialoop keys ...` as people and scripts use it."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from tests.gateway.opened import with_database

from dialoop.cli.main import main
from dialoop.gateway.keys import KeyLimits, KeyRing
from dialoop.gateway.keys_spec import Limits
from dialoop.gateway.store.audit import Audit
from dialoop.gateway.store.keys import Keys
from dialoop.gateway.store.usage import Usage
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.gateway.database import Database


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path))
    return f"sqlite:///{tmp_path}/gateway/gateway.db"


@pytest.fixture
def keys(address: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a verb and give its document, or its text with `as_text`."""

    def run(*words: str, code: int = 0, as_text: bool = False) -> Any:
        capsys.readouterr()
        assert main(["keys", *words, *([] if as_text else ["--json"])]) == code
        out = capsys.readouterr().out
        return out if as_text else json.loads(out)

    return run


def test_a_key_is_made_listed_shown_and_revoked(keys: Callable[..., Any], address: str) -> None:
    made = keys(
        *("create", "app", "--scopes", "chat", "embed", "--models", "small"),
        *("--expires_in_days", "2", "--limits.requests_per_minute", "60"),
    )
    key, secret = made["key"], made["secret"]
    assert secret.startswith(key["prefix"])
    assert (key["scopes"], key["models"]) == (["chat", "embed"], ["small"])
    assert key["limits"]["requests_per_minute"] == 60
    assert keys("list")["keys"] == [key]
    assert keys("list", "--tenant", "acme")["keys"] == []
    for words in ("app", key["id"], key["prefix"]):
        assert keys("show", words)["key"] == key

    async def find(database: Database) -> float | None:
        ring = KeyRing(Keys(database))
        await ring.refresh()
        return ring.find(f"Bearer {secret}".encode()).expires_at

    expires_at = with_database(address, find)
    assert expires_at == pytest.approx(time.time() + 2 * 86_400, abs=60)
    assert keys("revoke", "app")["key"]["revoked_at"] is not None
    with pytest.raises(ApiError, match="revoked"):
        with_database(address, find)

    async def audit(database: Database) -> list[str]:
        return [record.action for record in await Audit(database).list("default")]

    assert with_database(address, audit) == ["key.revoke", "key.create"]


def test_people_read_the_secret_once(keys: Callable[..., Any]) -> None:
    text = keys("create", "app", "--limits.concurrent", "3", as_text=True)
    secret = text.split("The secret is shown this once:\n")[1].strip()
    assert secret.startswith("sk-dl-")
    assert "limits   concurrent 3" in text
    for words in (("list",), ("show", "app"), ("revoke", "app")):
        assert secret not in keys(*words, as_text=True)
    assert "revoked 20" in keys("list", as_text=True)


def test_an_empty_list_says_what_to_do(keys: Callable[..., Any]) -> None:
    assert "dialoop keys create NAME" in keys("list", as_text=True)


def test_faults_are_named(keys: Callable[..., Any]) -> None:
    keys("create", "app")
    keys("create", "app", "--tenant", "acme")
    for words, message in (
        (("show", "nobody"), "key: no key `nobody`"),
        (("show", "nobody", "--tenant", "acme"), "key: no key `nobody` of tenant `acme`"),
        (("revoke", "app"), "key: `app` may be each of `key_"),
        (("create", "x", "--scopes", "fly"), "fly"),
        (("create", "x", "--limits.concurrent", "0"), "limits.concurrent"),
        (("usage", "--since", "2026-13-01"), "since"),
        (("list", "--database", "mysql://h/x"), "unknown database `mysql`"),
    ):
        assert message in keys(*words, code=2)["error"]["message"]
    keys("revoke", "app", "--tenant", "acme")
    again = keys("revoke", "app", "--tenant", "acme", code=2)["error"]
    assert "was revoked before" in again["message"]


def test_usage_is_shown_by_day(keys: Callable[..., Any], address: str) -> None:
    ids = [keys("create", name)["key"]["id"] for name in ("app", "web")]

    async def use(database: Database) -> None:
        rows = [(key, f"2026-01-0{day}", 1, 1000, 10, 1) for key in ids for day in (1, 2)]
        await Usage(database).add(rows)

    with_database(address, use)
    assert len(keys("usage")["days"]) == 4
    (day,) = keys("usage", "web", "--since", "2026-01-02", "--until", "2026-01-02")["days"]
    assert (day["key_name"], day["day"], day["prompt_tokens"]) == ("web", "2026-01-02", 1000)
    text = keys("usage", as_text=True)
    assert "4,000" in text.splitlines()[-1]
    assert "no use" in keys("usage", "--tenant", "acme", as_text=True)


def test_the_spec_s_limits_are_those_of_keys() -> None:
    assert list(Limits.model_fields) == [field.name for field in fields(KeyLimits)]
