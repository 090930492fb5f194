"""Keys of the gateway: who asks, and what they may."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use; None is without limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    expires_at: float | None
    limits: KeyLimits
