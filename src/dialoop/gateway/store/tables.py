"""The tables, the same on SQLite and PostgreSQL, and the version that says which they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from dialoop.gateway.store.address import Kind

SCHEMA_VERSION = 1
"""Raised with every change of a table, together with the statements that lead there."""
KEY_GENERATION = "keys"
"""The counter that changes with any change of a key."""
_CREATION_LOCK = 0x6469616C6F6F70


class Words(TypeDecorator[str]):
    """Text that both databases can hold."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        """Refuse what PostgreSQL has no bytes for.

        Raises:
            UserError: the text has a NUL or half a surrogate pair.
        """
        del dialect
        if value is not None:
            if "\0" in value:
                raise UserError("text with a NUL character cannot be stored", hint="take it out")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    "text with half a surrogate pair cannot be stored", hint="take it out"
                ) from error
        return value


_Sequence = BigInteger().with_variant(Integer, "sqlite")
_Body = JSON(none_as_null=True)

metadata = MetaData()

schema = Table(
    "dialoop_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
)

counters = Table(
    "dialoop_counters",
    metadata,
    Column("name", Words, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

keys = Table(
    "dialoop_keys",
    metadata,
    Column("tenant", Words, primary_key=True),
    Column("id", Words, primary_key=True),
    Column("name", Words, nullable=False),
    Column("digest", Words, nullable=False, unique=True),
    Column("prefix", Words, nullable=False),
    Column("scopes", _Body, nullable=False),
    Column("models", _Body),
    Column("limits", _Body, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    UniqueConstraint("id"),
)

usage = Table(
    "dialoop_usage",
    metadata,
    Column("key_id", Words, primary_key=True),
    Column("day", Words, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
)

conversations = Table(
    "dialoop_conversations",
    metadata,
    Column("tenant", Words, primary_key=True),
    Column("id", Words, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("metadata", _Body, nullable=False),
    Column("num_appended", BigInteger, nullable=False),
    Column("pins", _Body, nullable=False),
    Column("summary", Words),
    Column("summary_upto", Words),
)

items = Table(
    "dialoop_items",
    metadata,
    Column("tenant", Words, primary_key=True),
    Column("conversation_id", Words, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Words, nullable=False),
    Column("body", _Body, nullable=False),
    UniqueConstraint("tenant", "conversation_id", "id"),
    ForeignKeyConstraint(
        ["tenant", "conversation_id"],
        ["dialoop_conversations.tenant", "dialoop_conversations.id"],
        ondelete="CASCADE",
    ),
)

responses = Table(
    "dialoop_responses",
    metadata,
    Column("tenant", Words, primary_key=True),
    Column("id", Words, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("body", _Body, nullable=False),
    Column("input_items", _Body, nullable=False),
    Column("previous_response_id", Words),
    Column("conversation_id", Words),
    Column("expires_at", Double),
    Index("dialoop_responses_expiry", "expires_at"),
)

feedback = Table(
    "dialoop_feedback",
    metadata,
    Column("sequence", _Sequence, primary_key=True),
    Column("tenant", Words, nullable=False),
    Column("id", Words, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("request_id", Words, nullable=False),
    Column("trace_id", Words),
    Column("thumb", Words),
    Column("corrected", Words),
    Column("reason", Words),
    Column("message_index", Integer),
    Column("user", Words),
    Index("dialoop_feedback_time", "tenant", "created_at"),
)

audit = Table(
    "dialoop_audit",
    metadata,
    Column("sequence", _Sequence, primary_key=True),
    Column("tenant", Words, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("actor", Words, nullable=False),
    Column("action", Words, nullable=False),
    Column("object", Words, nullable=False),
    Column("detail", _Body, nullable=False),
    Index("dialoop_audit_time", "tenant", "created_at"),
)

traces = Table(
    "dialoop_traces",
    metadata,
    Column("tenant", Words, primary_key=True),
    Column("request_id", Words, primary_key=True),
    Column("trace_id", Words, nullable=False),
    Column("key_id", Words),
    Column("started_at", Double, nullable=False),
    Column("model", Words),
    Column("engine", Words),
    Column("status", Integer, nullable=False),
    Column("body", _Body, nullable=False),
    Index("dialoop_traces_time", "tenant", "started_at"),
    Index("dialoop_traces_age", "started_at"),
)


async def stored_version(connection: AsyncConnection) -> int | None:
    """The version of the tables that are there; None where there are none."""
    if not await connection.run_sync(_has_tables):
        return None
    return (await connection.execute(select(schema.c.version))).scalar_one()


async def create(connection: AsyncConnection) -> None:
    """Make the tables unless another process has; within a transaction."""
    if connection.dialect.name == "postgresql":
        lock = text("SELECT pg_advisory_xact_lock(:lock)")
        await connection.execute(lock, {"lock": _CREATION_LOCK})
    if await stored_version(connection) is None:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(schema).values(version=SCHEMA_VERSION))
        await connection.execute(insert(counters).values(name=KEY_GENERATION, value=1))


def inserting(kind: Kind, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An insertion that can say what to do when the row is there already."""
    return sqlite.insert(table) if kind == "sqlite" else postgresql.insert(table)


def _has_tables(connection: Connection) -> Any:
    return inspect(connection).has_table(schema.name)
