"""Tokens of a day and a month."""

from __future__ import annotations

from datetime import UTC, datetime

from dialoop.gateway.keys import Key, KeyLimits
from dialoop.gateway.limits.quota import QuotaBook, Usage, day_of


class Clock:
    """A moment that can be set."""

    def __init__(self, *moment: int) -> None:
        self.set(*moment)

    def set(self, *moment: int) -> None:
        self.now = datetime(*moment, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def key(day: int | None = None, month: int | None = None) -> Key:
    limits = KeyLimits(tokens_per_day=day, tokens_per_month=month)
    return Key("k", "name", "tenant", frozenset({"chat"}), None, None, limits)


def test_a_day_ends_at_midnight_utc() -> None:
    clock = Clock(2026, 11, 24, 23, 59, 30)
    book = QuotaBook(clock=clock)
    assert day_of(clock.now) == "2026-11-24"
    book.add("k", "2026-11-24", Usage(1, 60, 39))
    assert book.check(key(day=100)) is None
    book.add("k", "2026-11-24", Usage(1, 1, 0))
    error = book.check(key(day=100))
    assert error is not None
    assert (error.status, error.code, error.retry_after_s) == (429, "insufficient_quota", 31)
    assert str(error) == "this key has used 100 of its 100 tokens of this day (UTC)"
    clock.set(2026, 11, 25, 0, 0, 0)
    assert book.check(key(day=100)) is None
    assert book.check(key(month=100)) is not None, "the month goes on"


def test_a_month_ends_with_its_last_day() -> None:
    clock = Clock(2026, 12, 31, 12, 0, 0)
    book = QuotaBook(clock=clock)
    book.learn("k", "2026-12-31", 10, 1000)
    error = book.check(key(day=100, month=1000))
    assert error is not None
    assert error.retry_after_s == 12 * 3600 + 1
    assert "of this month" in str(error)
    clock.set(2027, 1, 1)
    book.learn("k", "2026-12-31", 10, 1000)  # a flusher that was late
    assert book.check(key(day=100, month=1000)) is None


def test_what_is_being_written_counts_once() -> None:
    clock = Clock(2026, 11, 24)
    book = QuotaBook(clock=clock)
    limited = key(day=100)
    assert book.check(limited) is None
    book.add("k", "2026-11-24", Usage(1, 50, 10, 5))
    assert book.drain() == [("k", "2026-11-24", 1, 50, 10, 5)]
    assert book.drain() == []
    book.add("k", "2026-11-24", Usage(1, 30, 10))
    assert book.check(limited) is not None, "60 that are being written, and 40 that wait"
    book.learn("k", "2026-11-24", 60, 60)
    assert book.check(limited) is not None
    assert book.check(key(day=101)) is None, "the 60 are in the total now"


def test_what_could_not_be_written_is_offered_again() -> None:
    clock = Clock(2026, 11, 24)
    book = QuotaBook(clock=clock)
    book.add("k", "2026-11-24", Usage(1, 50, 10))
    book.restore(book.drain())
    assert book.check(key(day=61)) is None
    assert book.check(key(day=60)) is not None
    assert book.drain() == [("k", "2026-11-24", 1, 50, 10, 0)]


def test_totals_that_are_too_old_close_the_key_and_only_such() -> None:
    clock = Clock(2026, 11, 24)
    book = QuotaBook(grace_s=300, clock=clock)
    assert book.check(key(day=1000)) is None
    assert book.keys() == ["k"]
    clock.now += 301
    error = book.check(key(day=1000))
    assert error is not None
    assert (error.status, error.code) == (503, "usage_unknown")
    assert "has not been known for 301 s" in str(error)
    assert book.check(key()) is None, "no quota, nothing to know"
    book.learn("k", "2026-11-24", 0, 0)
    assert book.check(key(day=1000)) is None


def test_only_keys_with_a_quota_that_ask_are_wanted() -> None:
    clock = Clock(2026, 11, 24)
    book = QuotaBook(grace_s=300, clock=clock)
    book.add("other", "2026-11-24", Usage(1, 50, 10))
    assert book.check(key(day=100)) is None
    assert book.keys() == ["k"]
    assert book.drain() == [("other", "2026-11-24", 1, 50, 10, 0)]
    book.learn("k", "2026-11-24", 99, 99)
    clock.now += 3600
    assert book.keys() == [], "it has not asked for an hour"
    assert book.check(key(day=100)) is None, "its numbers are old, and asked for from now on"
    assert book.check(key(day=99)) is not None
    assert book.keys() == ["k"]
    clock.now += 301
    error = book.check(key(day=100))
    assert error is not None
    assert error.status == 503


def test_a_forgotten_key_loses_nothing_that_is_to_be_written() -> None:
    book = QuotaBook(clock=Clock(2026, 11, 24))
    assert book.check(key(day=100)) is None
    book.add("k", "2026-11-24", Usage(1, 1, 1))
    book.forget("k")
    assert len(book.drain()) == 1
    book.forget("k")
    assert book.keys() == []
