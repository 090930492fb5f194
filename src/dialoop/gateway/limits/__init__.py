"""Limits of a key by the minute: requests, tokens and requests at once, charged in one step.

The minute slides: within any 60 s no more is admitted than the limit. Time is counted in whole
seconds, so what was charged in second `s` gives its room back at `s + 61`. The two homes of the
numbers are `shared` (the processes of one gateway) and `redis` (several gateways).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from dialoop.gateway.keys import KeyLimits

WINDOW = 61
"""Seconds that count: the 60 before this one, and this one. The oldest counts whole."""
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of one limit."""

    name: str
    """`requests` or `tokens`."""
    limit: int
    remaining: int
    reset_s: float
    """Until nothing is charged any more, if nothing more is asked."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was let in and charged."""

    key_id: str
    id: int
    """Of this admission, in its home."""
    home: Counters
    """Where it was charged."""
    second: int
    """When it was charged, by its home's clock."""
    tokens: int
    """The estimate that was charged."""
    has_place: bool
    """Whether it takes one of the key's concurrent places."""
    rooms: tuple[Room, ...]

    def headers(self) -> Headers:
        """OpenAI's `x-ratelimit-*` headers."""
        return _headers(self.rooms)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not let in; nothing was charged."""

    limit_name: str
    """`requests per minute`, `tokens per minute` or `concurrent requests`."""
    limit: int
    remaining: int
    asked: int
    retry_after_s: float | None
    """When the same request can be let in; None is never, since it asks for more than the limit."""
    rooms: tuple[Room, ...]

    def headers(self) -> Headers:
        """OpenAI's `x-ratelimit-*` headers."""
        return _headers(self.rooms)

    def error(self) -> ApiError:
        """What the client is told: 429, or 400 where no waiting can help."""
        known = f"the limit of this key is {self.limit} {self.limit_name}"
        if self.retry_after_s is None:
            message = f"{known} and this request alone asks for {self.asked}"
            return ApiError(400, message, code="request_too_large")
        wait_s = max(1, math.ceil(self.retry_after_s))
        return ApiError(
            429,
            f"{known}: {self.remaining} left, {self.asked} asked for. Try again in {wait_s} s.",
            code="rate_limit_exceeded",
            retry_after_s=wait_s,
        )


@dataclass(frozen=True, slots=True)
class Used:
    """What counts against a key at one moment; the waits are 0 where there is room."""

    requests: int
    tokens: int
    places: int
    wait_requests_s: float
    wait_tokens_s: float
    reset_requests_s: float
    reset_tokens_s: float


class Counters(ABC):
    """What keys have used in the last minute, and what they use now.

    A request is admitted, then settled at most once and released at most once, in any order; these
    two never fail, and are made up for later where they must wait.
    """

    @abstractmethod
    async def admit(self, key_id: str, limits: KeyLimits, tokens: int) -> Admission | Refusal:
        """Charge a request, an estimate of its tokens and a concurrent place: all or none.

        Raises:
            MachineError: the numbers cannot be kept.
        """

    @abstractmethod
    async def settle(self, admission: Admission, actual_tokens: int) -> None:
        """Correct the estimate, above the limit where it must be: later requests wait then.

        What was too much is given back to the second of the admission, what was too little is
        charged to this one.
        """

    @abstractmethod
    async def release(self, admission: Admission) -> None:
        """Give the concurrent place back; the second time is without effect."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of files and tasks."""


def is_counted(limits: KeyLimits) -> bool:
    """Whether a key has a limit that is kept here."""
    return not (
        limits.requests_per_minute is None
        and limits.tokens_per_minute is None
        and limits.concurrent is None
    )


def rooms(limits: KeyLimits, used: Used) -> tuple[Room, ...]:
    """What is left, limit by limit."""
    found: list[Room] = []
    most = limits.requests_per_minute
    if most is not None:
        left = most - used.requests
        found.append(Room("requests", most, left if left > 0 else 0, used.reset_requests_s))
    most = limits.tokens_per_minute
    if most is not None:
        left = most - used.tokens
        found.append(Room("tokens", most, left if left > 0 else 0, used.reset_tokens_s))
    return tuple(found)


PLACE_RETRY_S = 1.0
"""What is advised where a place is waited for: nobody knows when one is given back."""


def refusal(limits: KeyLimits, used: Used, tokens: int) -> Refusal:
    """Why a request was not let in: the limit that must be waited for longest."""
    found = (
        (
            "requests per minute",
            limits.requests_per_minute,
            used.requests,
            1,
            used.wait_requests_s,
        ),
        ("tokens per minute", limits.tokens_per_minute, used.tokens, tokens, used.wait_tokens_s),
        ("concurrent requests", limits.concurrent, used.places, 1, PLACE_RETRY_S),
    )
    left = rooms(limits, used)
    passed = [
        Refusal(
            name, limit, max(0, limit - num_used), asked, wait_s if asked <= limit else None, left
        )
        for name, limit, num_used, asked, wait_s in found
        if limit is not None and num_used + asked > limit
    ]
    return max(passed, key=lambda one: math.inf if one.retry_after_s is None else one.retry_after_s)


def duration(seconds: float) -> str:
    """Seconds as OpenAI's headers spell them: `20ms`, `1.2s`, `6m0s`."""
    millis = math.ceil(seconds * 1000)
    if 0 < millis < 1000:
        return f"{millis}ms"
    minutes, rest = divmod(millis, 60_000)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{shown}s" if minutes else f"{shown}s"


def _headers(left: tuple[Room, ...]) -> Headers:
    found: Headers = []
    for room in left:
        name = room.name
        found += (
            (f"x-ratelimit-limit-{name}".encode(), b"%d" % room.limit),
            (f"x-ratelimit-remaining-{name}".encode(), b"%d" % room.remaining),
            (f"x-ratelimit-reset-{name}".encode(), duration(room.reset_s).encode()),
        )
    return found
