"""Tokens of a key by day and month (UTC): what the database knows and what is not written yet.

Nothing here asks the database. A flusher takes `drain()`'s rows, writes them, reads the totals of
`keys()` and hands them to `learn`; where it could not write it hands the rows back to `restore`.
Other gateways are seen by what they have written, so a quota is passed by what is in flight.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dialoop.gateway.keys import Key
    from dialoop.gateway.store.usage import UsageRow


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request used."""

    requests: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those that an engine had read before."""


_WANTED_S = 600.0
"""How long after its last request the totals of a key are kept fresh."""


@dataclass(slots=True)
class _Known:
    """One key's totals."""

    wanted_at: float | None = None
    """When its quota was last looked at; None where it has had none."""
    asked_at: float = 0.0
    """Since when its quota is looked at again and again."""
    learned_at: float = 0.0
    day: str = ""
    """On which `day_tokens` and `month_tokens` were learned."""
    day_tokens: int = 0
    month_tokens: int = 0
    pending: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """By day: requests, prompt, completion and cached tokens that were not drained."""
    drained: dict[str, int] = field(default_factory=dict[str, int])
    """By day: tokens that were drained and are not in what was learned."""


class QuotaBook:
    """Who has tokens left.

    Args:
        grace_s: how long a quota is kept by numbers that cannot be refreshed; after that the key
            is refused with status 503, since nobody knows what it has used.
        clock: seconds since 1970.
    """

    def __init__(self, *, grace_s: float = 300.0, clock: Callable[[], float] = time.time) -> None:
        self._grace_s, self._clock = grace_s, clock
        self._keys: dict[str, _Known] = {}

    def check(self, key: Key) -> ApiError | None:
        """Why a key may not ask now; None where it may."""
        most_day, most_month = key.limits.tokens_per_day, key.limits.tokens_per_month
        if most_day is None and most_month is None:
            return None
        now = self._clock()
        known = self._known(key.id)
        if known.wanted_at is None or now - known.wanted_at > _WANTED_S:
            known.asked_at = now
        known.wanted_at = now
        unknown_s = now - max(known.asked_at, known.learned_at)
        if unknown_s > self._grace_s:
            return ApiError(
                503,
                f"the usage of this key has not been known for {unknown_s:.0f} s, and it has a "
                "quota",
                code="usage_unknown",
                retry_after_s=5,
            )
        day = day_of(now)
        used_day, used_month = _used(known, day)
        if most_month is not None and used_month >= most_month:
            return _spent("month", most_month, used_month, _next_month(now) - now)
        if most_day is not None and used_day >= most_day:
            return _spent("day", most_day, used_day, _next_day(now) - now)
        return None

    def add(self, key_id: str, day: str, usage: Usage) -> None:
        """Count what a request used.

        Args:
            key_id: who asked.
            day: when, by `day_of`.
            usage: what it used.
        """
        row = self._known(key_id).pending.setdefault(day, [0, 0, 0, 0])
        row[0] += usage.requests
        row[1] += usage.prompt_tokens
        row[2] += usage.completion_tokens
        row[3] += usage.cached_tokens

    def keys(self) -> list[str]:
        """Keys whose totals are wanted: those with a quota that have asked not long ago."""
        since = self._clock() - _WANTED_S
        return [
            key_id
            for key_id, known in self._keys.items()
            if known.wanted_at is not None and known.wanted_at >= since
        ]

    def drain(self) -> list[UsageRow]:
        """What is to be written; it counts on until `learn` tells of it."""
        rows: list[UsageRow] = []
        for key_id, known in self._keys.items():
            for day, (requests, prompt, completion, cached) in known.pending.items():
                rows.append((key_id, day, requests, prompt, completion, cached))
                known.drained[day] = known.drained.get(day, 0) + prompt + completion
            known.pending.clear()
        self._keys = {k: known for k, known in self._keys.items() if known.wanted_at is not None}
        return rows

    def restore(self, rows: Iterable[UsageRow]) -> None:
        """Take back what could not be written."""
        for key_id, day, requests, prompt, completion, cached in rows:
            self.add(key_id, day, Usage(requests, prompt, completion, cached))
            known = self._known(key_id)
            known.drained[day] = max(0, known.drained.get(day, 0) - prompt - completion)

    def learn(self, key_id: str, day: str, day_total: int, month_total: int) -> None:
        """Take over what the database knows, all rows that were drained included.

        Args:
            key_id: whose.
            day: the day of the total, by `day_of`.
            day_total: tokens of that day.
            month_total: tokens of its month, that day included.
        """
        known = self._known(key_id)
        known.learned_at, known.day = self._clock(), day
        known.day_tokens, known.month_tokens = day_total, month_total
        known.drained.clear()

    def forget(self, key_id: str) -> None:
        """Drop a key that was revoked, once its rows are drained."""
        known = self._keys.get(key_id)
        if known and not known.pending:
            del self._keys[key_id]

    def _known(self, key_id: str) -> _Known:
        return self._keys.setdefault(key_id, _Known())


def day_of(now: float) -> str:
    """The day (UTC) of a moment in seconds since 1970, as YYYY-MM-DD."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


def _used(known: _Known, day: str) -> tuple[int, int]:
    month = day[:7]
    used_day = known.day_tokens if known.day == day else 0
    used_month = known.month_tokens if known.day[:7] == month else 0
    for when, (_, prompt, completion, _) in known.pending.items():
        used_day += prompt + completion if when == day else 0
        used_month += prompt + completion if when[:7] == month else 0
    for when, tokens in known.drained.items():
        used_day += tokens if when == day else 0
        used_month += tokens if when[:7] == month else 0
    return used_day, used_month


def _spent(period: str, limit: int, used: int, wait_s: float) -> ApiError:
    return ApiError(
        429,
        f"this key has used {used} of its {limit} tokens of this {period} (UTC)",
        code="insufficient_quota",
        retry_after_s=int(wait_s) + 1,
    )


def _next_day(now: float) -> float:
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today + timedelta(days=1)).timestamp()


def _next_month(now: float) -> float:
    first = datetime.fromtimestamp(now, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return (first + timedelta(days=32)).replace(day=1).timestamp()
