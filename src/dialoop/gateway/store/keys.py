"""Keys as they are kept: the hash of the secret, never the secret."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from dialoop.core.errors import UserError
from dialoop.gateway.keys import SCOPES, Key, KeyLimits, KeySnapshot
from dialoop.gateway.store.ids import new_id
from dialoop.gateway.store.tables import KEY_GENERATION, counters, keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from dialoop.gateway.database import Database

_PREFIX = "sk-dl-"
_NUM_SHOWN = len(_PREFIX) + 6

_generation = select(counters.c.value).where(counters.c.name == KEY_GENERATION)
_next_generation = (
    update(counters).where(counters.c.name == KEY_GENERATION).values(value=counters.c.value + 1)
)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key with what is known of its life."""

    key: Key
    prefix: str
    """How its secret begins, for people to tell keys apart."""
    created_at: float
    """Seconds since 1970, as all times here."""
    revoked_at: float | None


class Keys:
    """The keys of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        name: str,
        tenant: str,
        scopes: Iterable[str],
        models: Iterable[str] | None = None,
        limits: KeyLimits | None = None,
        expires_at: float | None = None,
    ) -> tuple[Key, str]:
        """Make a key.

        Returns:
            The key, and its secret, which nobody can find out later.

        Raises:
            UserError: a scope is unknown, or there is none.
        """
        key = _new_key(name, tenant, scopes, models, limits or KeyLimits(), expires_at)
        secret = _new_secret()

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(_next_generation)
            await connection.execute(insert(keys).values(_row(key, secret)))

        await self._database.write(work)
        return key, secret

    async def create_first(self) -> tuple[Key, str] | None:
        """Make a key for everything when there has never been any; None when there has.

        Of several processes that do this at once, one makes it.
        """
        if await self._database.row(select(keys.c.id).limit(1)) is not None:
            return None
        key = _new_key("first", "default", SCOPES, None, KeyLimits(), None)
        secret = _new_secret()

        async def work(connection: AsyncConnection) -> bool:
            await connection.execute(_next_generation)  # locks out the others
            if (await connection.execute(select(keys.c.id).limit(1))).first() is not None:
                return False
            await connection.execute(insert(keys).values(_row(key, secret)))
            return True

        return (key, secret) if await self._database.write(work) else None

    async def get(self, tenant: str, key_id: str) -> KeyRecord | None:
        """A tenant's key; None when it has no such key."""
        row = await self._database.row(select(keys).where(*_one(tenant, key_id)))
        return None if row is None else _record(row)

    async def list(self, tenant: str) -> list[KeyRecord]:
        """A tenant's keys, the oldest first."""
        mine = select(keys).where(keys.c.tenant == tenant)
        return [_record(row) for row in await self._database.rows(_in_order(mine))]

    async def list_all(self) -> list[KeyRecord]:
        """All tenants' keys, for who operates the gateway."""
        return [_record(row) for row in await self._database.rows(_in_order(select(keys)))]

    async def update_limits(self, tenant: str, key_id: str, limits: KeyLimits) -> bool:
        """Change how much a key may be used; False when the tenant has no such key."""
        return await self._change(tenant, key_id, {"limits": asdict(limits)})

    async def revoke(self, tenant: str, key_id: str) -> bool:
        """End a key for good; False when the tenant has no such key that is not revoked."""
        return await self._change(tenant, key_id, {"revoked_at": time.time()})

    async def generation(self) -> int:
        """A number that changes with any change of a key."""
        (row,) = await self._database.rows(_generation)
        return row["value"]

    async def all_active(self) -> list[Key]:
        """The keys that were not revoked, expired ones included."""
        return list((await self.snapshot()).active.values())

    async def snapshot(self) -> KeySnapshot:
        """All keys by their hashes, as a `KeyRing` wants them."""

        async def work(connection: AsyncConnection) -> KeySnapshot:
            # Read before the keys: a change in between is then found at the next look.
            generation: int = (await connection.execute(_generation)).scalar_one()
            rows = (await connection.execute(select(keys))).mappings().all()
            return KeySnapshot(
                generation=generation,
                active={_digest(row): _key(row) for row in rows if row["revoked_at"] is None},
                revoked=frozenset(_digest(row) for row in rows if row["revoked_at"] is not None),
            )

        return await self._database.read(work)

    async def _change(self, tenant: str, key_id: str, values: Mapping[str, Any]) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            await connection.execute(_next_generation)
            statement = update(keys).where(*_one(tenant, key_id), keys.c.revoked_at.is_(None))
            return (await connection.execute(statement.values(values))).rowcount == 1

        return await self._database.write(work)


def _new_key(
    name: str,
    tenant: str,
    scopes: Iterable[str],
    models: Iterable[str] | None,
    limits: KeyLimits,
    expires_at: float | None,
) -> Key:
    wanted = frozenset(scopes)
    if unknown := sorted(wanted - SCOPES):
        raise UserError(
            f"unknown scope `{unknown[0]}`", hint=f"known scopes: {', '.join(sorted(SCOPES))}"
        )
    if not wanted:
        raise UserError(f"the key `{name}` is for nothing", hint="give it a scope")
    allowed = None if models is None else frozenset(models)
    return Key(new_id("key"), name, tenant, wanted, allowed, expires_at, limits)


def _new_secret() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def _row(key: Key, secret: str) -> dict[str, Any]:
    return {
        "tenant": key.tenant,
        "id": key.id,
        "name": key.name,
        "digest": sha256(secret.encode()).hexdigest(),
        "prefix": secret[:_NUM_SHOWN],
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "limits": asdict(key.limits),
        "created_at": time.time(),
        "expires_at": key.expires_at,
    }


def _one(tenant: str, key_id: str) -> tuple[Any, Any]:
    return keys.c.tenant == tenant, keys.c.id == key_id


def _in_order(statement: Any) -> Any:
    return statement.order_by(keys.c.created_at, keys.c.id)


def _digest(row: RowMapping) -> bytes:
    return bytes.fromhex(row["digest"])


def _key(row: RowMapping) -> Key:
    return Key(
        id=row["id"],
        name=row["name"],
        tenant=row["tenant"],
        scopes=frozenset(row["scopes"]),
        models=None if row["models"] is None else frozenset(row["models"]),
        expires_at=row["expires_at"],
        limits=KeyLimits(**row["limits"]),
    )


def _record(row: RowMapping) -> KeyRecord:
    return KeyRecord(_key(row), row["prefix"], row["created_at"], row["revoked_at"])
