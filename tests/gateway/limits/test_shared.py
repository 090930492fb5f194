"""The table that processes share: its window, its room, and processes that die."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoop.core.errors import MachineError
from dialoop.gateway.keys import KeyLimits
from dialoop.gateway.limits import Admission, Refusal
from dialoop.gateway.limits.shared import SharedCounters

SPAWN = multiprocessing.get_context("spawn")


def admit(counters: SharedCounters, key: str, limits: KeyLimits, tokens: int = 1) -> Any:
    return asyncio.run(counters.admit(key, limits, tokens))


def close(*homes: SharedCounters) -> None:
    for one in homes:
        asyncio.run(one.close())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.05, 0.5, 1.0, 3.3, 17.0, 59.5, 60.0, 61.0, 200.0]),
            st.integers(0, 60),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_no_minute_passes_a_limit_and_the_wait_is_exact(steps: list[tuple[float, int, bool]]):
    limits = KeyLimits(requests_per_minute=5, tokens_per_minute=100)
    now = [500.0]
    passed: list[tuple[float, int]] = []

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            counters = SharedCounters(Path(folder), max_keys=16, clock=lambda: now[0])
            for wait_s, tokens, is_obedient in steps:
                now[0] += wait_s
                found = await counters.admit("k", limits, tokens)
                if isinstance(found, Refusal):
                    recent = [one for at, one in passed if int(at) > int(now[0]) - 61]
                    is_over = len(recent) == 5 or sum(recent) + tokens > 100
                    assert is_over, "refused, though there was room"
                    assert found.retry_after_s is not None
                    if is_obedient:
                        now[0] += found.retry_after_s - 0.001
                        early = await counters.admit("k", limits, tokens)
                        assert isinstance(early, Refusal), "the wait could be shorter"
                        now[0] += 0.002
                        found = await counters.admit("k", limits, tokens)
                        assert isinstance(found, Admission), "the wait was too short"
                if isinstance(found, Admission):
                    passed.append((now[0], tokens))
            await counters.close()

    asyncio.run(main())
    for at, _ in passed:
        minute = [tokens for other, tokens in passed if at - 60 <= other <= at]
        assert len(minute) <= 5
        assert sum(minute) <= 100


def _ask(folder: str, num: int, results: Any) -> None:
    async def main() -> int:
        counters = SharedCounters(Path(folder))
        limits = KeyLimits(requests_per_minute=600)
        found = [await counters.admit("k", limits, 0) for _ in range(num)]
        await counters.close()
        return sum(isinstance(one, Admission) for one in found)

    results.put(asyncio.run(main()))


def test_processes_together_admit_exactly_the_limit(tmp_path: Path) -> None:
    results = SPAWN.Queue()
    workers = [SPAWN.Process(target=_ask, args=(str(tmp_path), 1000, results)) for _ in range(2)]
    for one in workers:
        one.start()
    admitted = [results.get(timeout=60) for _ in workers]
    for one in workers:
        one.join(10)
    assert sum(admitted) == 600, admitted


def _die(folder: str, limits: KeyLimits, is_locked: bool) -> None:
    counters = SharedCounters(Path(folder))
    for _ in range(3):
        asyncio.run(counters.admit("k", limits, 10))
    if is_locked:
        counters._lock()
        base = counters._slot("k", int(time.monotonic()))
        counters._words[base + 4] = 777_777  # the sum of tokens, half way through a change
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_killed_process_leaves_no_lock_no_place_and_no_wrong_sum(
    tmp_path: Path, is_locked: bool
) -> None:
    limits = KeyLimits(tokens_per_minute=1000, concurrent=3)
    counters = SharedCounters(tmp_path)
    worker = SPAWN.Process(target=_die, args=(str(tmp_path), limits, is_locked))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    counters._reaped_at -= 10  # a second has passed since this one looked for the dead
    found = admit(counters, "k", limits)
    assert isinstance(found, Admission), "its places are cleared when they are missed"
    assert found.rooms[0].remaining == 1000 - 31
    close(counters)


def test_a_successor_clears_the_places_of_a_killed_process(tmp_path: Path) -> None:
    limits = KeyLimits(concurrent=3)
    worker = SPAWN.Process(target=_die, args=(str(tmp_path), limits, False))
    worker.start()
    worker.join(60)
    counters = SharedCounters(tmp_path)
    assert [type(admit(counters, "k", limits)) for _ in range(4)] == [Admission] * 3 + [Refusal]
    close(counters)


def test_places_of_the_living_are_not_cleared(tmp_path: Path) -> None:
    limits = KeyLimits(concurrent=1)
    one, other = SharedCounters(tmp_path), SharedCounters(tmp_path)
    held = admit(one, "k", limits)
    other._reaped_at -= 10
    assert isinstance(admit(other, "k", limits), Refusal)
    asyncio.run(one.release(held))
    assert isinstance(admit(other, "k", limits), Admission)
    close(other)
    assert isinstance(admit(one, "k", limits), Admission), "places end with an orderly close, too"
    close(one)


def test_a_lock_that_is_not_given_back_fails_with_words(tmp_path: Path) -> None:
    one, other = SharedCounters(tmp_path), SharedCounters(tmp_path)
    one._lock()
    began = time.monotonic()
    with pytest.raises(MachineError, match="held the counters of limits for 50 ms") as caught:
        admit(other, "k", KeyLimits(requests_per_minute=1))
    assert time.monotonic() - began < 1
    assert "is stopped" in str(caught.value)
    one._unlock()
    assert isinstance(admit(other, "k", KeyLimits(requests_per_minute=1)), Admission)
    close(one, other)


def test_what_a_request_gives_back_waits_for_the_lock(tmp_path: Path) -> None:
    limits = KeyLimits(tokens_per_minute=100, concurrent=1)
    one, other = SharedCounters(tmp_path), SharedCounters(tmp_path)
    held = admit(other, "k", limits, 90)
    one._lock()
    asyncio.run(other.settle(held, 20))
    asyncio.run(other.release(held))
    one._unlock()
    found = admit(other, "k", limits, 70)
    assert isinstance(found, Admission)
    assert found.rooms[0].remaining == 10
    close(one, other)


def test_idle_keys_give_their_slots_up_and_a_full_table_says_so(tmp_path: Path) -> None:
    now = [0.0]
    counters = SharedCounters(tmp_path, max_keys=16, clock=lambda: now[0])  # 64 slots
    limits = KeyLimits(requests_per_minute=1)
    for number in range(64):
        assert isinstance(admit(counters, f"key {number}", limits), Admission)
    with pytest.raises(MachineError, match="the table of limits is full: 64 slots") as caught:
        admit(counters, "one more", limits)
    assert "raise the number of keys" in str(caught.value)
    assert isinstance(admit(counters, "key 3", limits), Refusal), "who is in stays in"
    now[0] += 30
    held = admit(counters, "key 5", KeyLimits(concurrent=1))
    now[0] += 90
    for number in range(100, 163):
        assert isinstance(admit(counters, f"key {number}", limits), Admission)
    with pytest.raises(MachineError, match="full"):
        admit(counters, "one more", limits)
    assert isinstance(admit(counters, "key 5", KeyLimits(concurrent=1)), Refusal), "held for long"
    asyncio.run(counters.release(held))
    assert isinstance(admit(counters, "one more", limits), Admission)
    close(counters)


def test_a_clock_that_begins_anew_forgets(tmp_path: Path) -> None:
    now = [10_000.0]
    counters = SharedCounters(tmp_path, clock=lambda: now[0])
    limits = KeyLimits(requests_per_minute=1)
    assert isinstance(admit(counters, "k", limits), Admission)
    now[0] = 5.0
    assert isinstance(admit(counters, "k", limits), Admission)
    assert isinstance(admit(counters, "k", limits), Refusal)
    close(counters)


def test_too_many_processes_and_a_strange_file_are_refused(tmp_path: Path) -> None:
    one = SharedCounters(tmp_path, max_processes=1)
    with pytest.raises(MachineError, match="1 processes have the counters of limits open"):
        SharedCounters(tmp_path, max_processes=1)
    close(one)
    (path,) = tmp_path.glob("*.table")
    path.write_bytes(b"something else")
    with pytest.raises(MachineError, match="is not a table of limits of this version"):
        SharedCounters(tmp_path, max_processes=1)
    path.unlink()
    close(SharedCounters(tmp_path, max_processes=1))
