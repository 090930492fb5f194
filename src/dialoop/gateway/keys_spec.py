"""What can be asked of keys, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from datetime import UTC, date, datetime

from pydantic import BaseModel, Field

from dialoop.core.schema import Result, Spec
from dialoop.gateway.keys import ScopeName  # noqa: TC001  pydantic reads it at run time


class DatabaseSettings(Spec, frozen=True):
    """Where the gateway keeps keys, conversations and usage."""

    database: str = "sqlite"
    """`sqlite` (the file `gateway/gateway.db` under `DIALOOP_HOME`), `sqlite:////path/to/file.db`,
    or `postgresql://user:password@host/name`."""


class Limits(Spec, frozen=True):
    """How much a key may be used; what is not given has no limit."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests in any minute."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens, of prompts and answers, in any minute."""
    tokens_per_day: int | None = Field(default=None, ge=1)
    """Tokens on a day (UTC)."""
    tokens_per_month: int | None = Field(default=None, ge=1)
    """Tokens in a calendar month (UTC)."""
    concurrent: int | None = Field(default=None, ge=1)
    """Requests that may be under way together."""


class CreateKeyJob(DatabaseSettings, frozen=True):
    """Make a key for clients of the gateway; its secret is shown once."""

    name: str = Field(min_length=1, max_length=200)
    """What people call the key."""
    tenant: str = Field(default="default", min_length=1, max_length=200)
    """Whose it is. Keys of one tenant share conversations; tenants see nothing of one another."""
    scopes: tuple[ScopeName, ...] = Field(
        default=("chat", "embed", "rerank", "feedback", "conversations"), min_length=1
    )
    """What it is for. `admin` manages the gateway, `metrics` reads its measurements."""
    models: tuple[str, ...] | None = None
    """Models that it may name; all unless given."""
    expires_in_days: float | None = Field(default=None, gt=0, le=36500)
    """It ends by itself after so many days; never unless given."""
    limits: Limits = Limits()
    """How much it may be used."""


class ListKeysJob(DatabaseSettings, frozen=True):
    """List keys; secrets are not known to anybody."""

    tenant: str | None = None
    """Only those of this tenant."""


class _OneKeyJob(DatabaseSettings, frozen=True):
    key: str = Field(min_length=1)
    """The key's id, its name, or how its secret begins."""
    tenant: str | None = None
    """Whose key it is, where several have keys of one name."""


class ShowKeyJob(_OneKeyJob, frozen=True):
    """Show what a key may do."""


class RevokeKeyJob(_OneKeyJob, frozen=True):
    """End a key for good; gateways that run refuse it within a second or so."""


class KeyUsageJob(DatabaseSettings, frozen=True):
    """Show how much keys were used, by day."""

    key: str | None = None
    """Only this key: its id, its name, or how its secret begins."""
    tenant: str = "default"
    """Whose keys."""
    since: date | None = None
    """First day, as `2026-01-31` (UTC); the first that there is unless given."""
    until: date | None = None
    """Last day; today unless given."""


class ShownKey(BaseModel, frozen=True):
    """A key, without its secret."""

    id: str
    name: str
    tenant: str
    prefix: str
    """How its secret begins."""
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    limits: Mapping[str, int | None]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.revoked_at is not None:
            return f"revoked {self.revoked_at:%Y-%m-%d}"
        if self.expires_at is None:
            return "active"
        word = "expired" if self.expires_at <= datetime.now(UTC) else "active until"
        return f"{word} {self.expires_at:%Y-%m-%d}"

    def lines(self) -> str:
        """A line a fact."""
        limits = [f"{name} {value}" for name, value in self.limits.items() if value is not None]
        rows = {
            "id": self.id,
            "name": self.name,
            "tenant": self.tenant,
            "secret": f"{self.prefix}...",
            "state": self.state,
            "scopes": ", ".join(self.scopes),
            "models": "all" if self.models is None else ", ".join(self.models),
            "limits": ", ".join(limits).replace("_", " ") or "none",
            "created": f"{self.created_at:%Y-%m-%d %H:%M} UTC",
        }
        return "\n".join(f"{name:8} {value}" for name, value in rows.items())


class CreateKeyResult(Result, frozen=True):
    """The new key, and its secret for the only time."""

    key: ShownKey
    secret: str

    def text(self) -> str:
        """The key, then the secret on a line of its own."""
        return f"{self.key.lines()}\n\nThe secret is shown this once:\n{self.secret}"


class ListKeysResult(Result, frozen=True):
    """The keys, the oldest first."""

    keys: tuple[ShownKey, ...]

    def text(self) -> str:
        """A line a key."""
        if not self.keys:
            return "no keys: make one with `dialoop keys create NAME`"
        rows = [("id", "tenant", "name", "secret", "state", "scopes")]
        rows += [
            (key.id, key.tenant, key.name, f"{key.prefix}...", key.state, ", ".join(key.scopes))
            for key in self.keys
        ]
        return _table(rows)


class ShowKeyResult(Result, frozen=True):
    """One key."""

    key: ShownKey

    def text(self) -> str:
        """A line a fact."""
        return self.key.lines()


class RevokeKeyResult(Result, frozen=True):
    """The key that has ended."""

    key: ShownKey

    def text(self) -> str:
        """One line."""
        return f"revoked {self.key.id} ({self.key.name} of {self.key.tenant})"


class DayUsage(BaseModel, frozen=True):
    """A key's use on one day (UTC)."""

    day: str
    key_id: str
    key_name: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Those of the prompt tokens that an engine had computed before."""


class KeyUsageResult(Result, frozen=True):
    """Use by day and key, the oldest first."""

    days: tuple[DayUsage, ...]

    def text(self) -> str:
        """A line a day and key, and the sums."""
        if not self.days:
            return "no use in these days"
        counts = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")
        rows = [("day", "key", *(name.replace("_", " ") for name in counts))]
        numbers = [[day.model_dump()[name] for name in counts] for day in self.days]
        for day, counted in zip(self.days, numbers, strict=True):
            rows.append((day.day, f"{day.key_name} ({day.key_id})", *map(_grouped, counted)))
        sums = (_grouped(sum(column)) for column in zip(*numbers, strict=True))
        return _table([*rows, ("sum", "", *sums)])


def _grouped(number: int) -> str:
    return f"{number:,}"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
