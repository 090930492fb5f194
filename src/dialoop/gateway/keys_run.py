"""`dialoop keys create|list|show|revoke|usage`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, TypeVar

from dialoop.core.errors import UserError
from dialoop.gateway.database import Database
from dialoop.gateway.keys import KeyLimits
from dialoop.gateway.keys_spec import (
    CreateKeyResult,
    DayUsage,
    KeyUsageResult,
    ListKeysResult,
    RevokeKeyResult,
    ShowKeyResult,
    ShownKey,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dialoop.core.events import Event
    from dialoop.gateway.keys_spec import (
        CreateKeyJob,
        DatabaseSettings,
        KeyUsageJob,
        ListKeysJob,
        RevokeKeyJob,
        ShowKeyJob,
    )
    from dialoop.gateway.store.keys import KeyRecord

T = TypeVar("T")
_ACTOR = "command line"


def create(job: CreateKeyJob, emit: Callable[[Event], None]) -> CreateKeyResult:
    """Make a key."""
    del emit

    async def work(database: Database) -> CreateKeyResult:
        from dialoop.gateway.store.audit import Audit
        from dialoop.gateway.store.keys import Keys

        days = job.expires_in_days
        key, secret = await Keys(database).create(
            job.name,
            job.tenant,
            job.scopes,
            job.models,
            KeyLimits(**job.limits.model_dump()),
            None if days is None else time.time() + days * 86_400,
        )
        detail = {"name": key.name, "scopes": sorted(key.scopes)}
        await Audit(database).put(key.tenant, _ACTOR, "key.create", key.id, detail)
        return CreateKeyResult(key=await _shown(database, key.tenant, key.id), secret=secret)

    return _on_database(job, work)


def list_keys(job: ListKeysJob, emit: Callable[[Event], None]) -> ListKeysResult:
    """List keys."""
    del emit

    async def work(database: Database) -> ListKeysResult:
        found = await _records(database, job.tenant)
        return ListKeysResult(keys=tuple(map(_show, found)))

    return _on_database(job, work)


def show(job: ShowKeyJob, emit: Callable[[Event], None]) -> ShowKeyResult:
    """Show one key."""
    del emit

    async def work(database: Database) -> ShowKeyResult:
        return ShowKeyResult(key=_show(await _find(database, job.key, job.tenant)))

    return _on_database(job, work)


def revoke(job: RevokeKeyJob, emit: Callable[[Event], None]) -> RevokeKeyResult:
    """End a key; it is an error when it has ended already."""
    del emit

    async def work(database: Database) -> RevokeKeyResult:
        from dialoop.gateway.store.audit import Audit
        from dialoop.gateway.store.keys import Keys

        key = (await _find(database, job.key, job.tenant)).key
        if not await Keys(database).revoke(key.tenant, key.id):
            raise UserError(
                f"key: `{job.key}` was revoked before", hint="`dialoop keys show` says when"
            )
        await Audit(database).put(key.tenant, _ACTOR, "key.revoke", key.id, {"name": key.name})
        return RevokeKeyResult(key=await _shown(database, key.tenant, key.id))

    return _on_database(job, work)


def usage(job: KeyUsageJob, emit: Callable[[Event], None]) -> KeyUsageResult:
    """Show how much keys were used."""
    del emit

    async def work(database: Database) -> KeyUsageResult:
        from dialoop.gateway.store.usage import Usage

        wanted = None
        if job.key is not None:
            wanted = (await _find(database, job.key, job.tenant)).key.id
        found = await Usage(database).report(
            job.tenant, (job.since or date.min).isoformat(), (job.until or date.max).isoformat()
        )
        days = (
            DayUsage(day=day.day, key_id=day.key_id, key_name=day.key_name, **asdict(day.totals))
            for day in found
            if wanted in {None, day.key_id}
        )
        return KeyUsageResult(days=tuple(days))

    return _on_database(job, work)


def _on_database(job: DatabaseSettings, work: Callable[[Database], Awaitable[T]]) -> T:
    async def whole() -> T:
        database = await Database.open(job.database)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(whole())


async def _records(database: Database, tenant: str | None) -> list[KeyRecord]:
    from dialoop.gateway.store.keys import Keys

    keys = Keys(database)
    return await (keys.list_all() if tenant is None else keys.list(tenant))


async def _find(database: Database, words: str, tenant: str | None) -> KeyRecord:
    """The one key that has this id, name or beginning of a secret."""
    found = [
        record
        for record in await _records(database, tenant)
        if words in {record.key.id, record.key.name, record.prefix}
    ]
    whose = "" if tenant is None else f" of tenant `{tenant}`"
    if not found:
        raise UserError(f"key: no key `{words}`{whose}", hint="`dialoop keys list` shows all keys")
    if len(found) > 1:
        ids = ", ".join(f"`{record.key.id}`" for record in found)
        raise UserError(f"key: `{words}`{whose} may be each of {ids}", hint="give the id")
    return found[0]


async def _shown(database: Database, tenant: str, key_id: str) -> ShownKey:
    from dialoop.gateway.store.keys import Keys

    record = await Keys(database).get(tenant, key_id)
    assert record is not None, "keys are never deleted"  # noqa: S101  our own mistake only
    return _show(record)


def _show(record: KeyRecord) -> ShownKey:
    key = record.key
    return ShownKey(
        id=key.id,
        name=key.name,
        tenant=key.tenant,
        prefix=record.prefix,
        scopes=tuple(sorted(key.scopes)),
        models=None if key.models is None else tuple(sorted(key.models)),
        limits=asdict(key.limits),
        created_at=datetime.fromtimestamp(record.created_at, UTC),
        expires_at=_time(key.expires_at),
        revoked_at=_time(record.revoked_at),
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
