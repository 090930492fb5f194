"""The circuit breaker of one engine: after failures in a row it is left alone, then tried once."""

from __future__ import annotations

from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Counts an engine's failures; times are of the caller's clock, in seconds.

    Args:
        num_failures: failures in a row that open it.
        open_s: how long nothing is asked then.
    """

    __slots__ = ("_failures", "_is_trying", "_opened_at", "num_failures", "num_opened", "open_s")

    def __init__(self, num_failures: int, open_s: float) -> None:
        self.num_failures, self.open_s = num_failures, open_s
        self._failures = 0
        self._opened_at: float | None = None
        self._is_trying = False
        self.num_opened = 0
        """How often it has opened."""

    def state(self, now: float) -> State:
        """What it is now."""
        if self._opened_at is None:
            return "closed"
        return "open" if now - self._opened_at < self.open_s else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent; a half-open one allows one at a time."""
        state = self.state(now)
        return state == "closed" or (state == "half_open" and not self._is_trying)

    def begin(self, now: float) -> None:
        """A request is sent."""
        if self._opened_at is not None and self.state(now) == "half_open":
            self._is_trying = True

    def answer(self) -> None:
        """The engine has begun to answer: a half-open one closes, its next failure opens it."""
        if self._opened_at is not None:
            self._opened_at = None
            self._is_trying = False
            self._failures = self.num_failures - 1

    def succeed(self) -> None:
        """The engine answered; a request that the client gave up says nothing, see `forget`."""
        self._failures = 0
        self._opened_at = None
        self._is_trying = False

    def fail(self, now: float) -> None:
        """The engine failed."""
        self._failures += 1
        if self._is_trying or (self._opened_at is None and self._failures >= self.num_failures):
            self._opened_at = now
            self.num_opened += 1
        self._is_trying = False

    def forget(self) -> None:
        """A request ended without telling anything of the engine."""
        self._is_trying = False
