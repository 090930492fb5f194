"""Counters that the processes of one gateway share: a table in a mapped file.

A slot belongs to one key and is found by open addressing within `_REACH` slots. It holds a ring of
seconds for requests and one for tokens; each process has a column of concurrent places beside them.
A lock (`flock`: it ends with its holder) is held for microseconds. What a process that was killed
left half done is put right by the next one, and its places are cleared.

The clock is the machine's monotonic one, which all its processes share.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import time
from collections import deque
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from dialoop.core.errors import MachineError
from dialoop.gateway.limits import (
    WINDOW,
    Admission,
    Counters,
    Refusal,
    Used,
    is_counted,
    refusal,
    rooms,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.gateway.keys import KeyLimits

log = logging.getLogger(__name__)

_REACH = 64
"""Slots that are looked at for a key. With a quarter of the table in use, all are never taken."""
_SPARE = 4
"""Slots for each key that the table is made for."""
_MAGIC = 0x646C_6C69_6D69_7401
_HEAD = 2
"""Words before the slots: what the file is, and 1 + the slot's place while it is being changed."""
_SECOND, _REQUESTS, _TOKENS = 2, 3, 4
_REQUEST_RING = 5
_TOKEN_RING = _REQUEST_RING + WINDOW
_STRIDE = _TOKEN_RING + WINDOW
"""Words of a slot; its first two are the key's digest, 0 where no key was ever."""
_NO_COUNTS = memoryview(bytes(8 * (_STRIDE - _REQUESTS))).cast("q")
_UNCHARGED = -1
_LOCK_WAIT_S = 0.05
_REAP_EVERY_S = 1.0


class SharedCounters(Counters):
    """The counters of this process and of all that name the same folder.

    Open it after forking: a lock would be shared with the parent.

    Args:
        folder: for the table and the locks, on a local file system.
        max_keys: keys with limits that are in use within a minute.
        max_processes: that have the table open at once, those that drain included.
        clock: seconds, the same for all processes.

    Raises:
        MachineError: too many processes have it open, or the file is another's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_keys: int = 4096,
        max_processes: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._num_slots = 1 << (max(_REACH, max_keys * _SPARE) - 1).bit_length()
        self._columns = _HEAD + self._num_slots * _STRIDE  # where they begin, process by process
        # other sizes have other files: a reload may change them while old processes drain
        path = folder / f"limits-{self._num_slots}x{max_processes}.table"
        self._locks = [path.with_suffix(f".process-{n}") for n in range(max_processes)]
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._column, self._column_fd = self._claim_column()
        self._words = self._map(path)
        self._known: dict[str, tuple[int, int, int]] = {}
        self._open: dict[int, int] = {}  # admission -> the word that counts its place
        self._late: deque[Callable[[], None]] = deque()  # changes that wait for the lock
        self._next_id = 0
        self._reaped_at = -_REAP_EVERY_S
        self._clear(self._column)
        self._reap()

    async def admit(self, key_id: str, limits: KeyLimits, tokens: int) -> Admission | Refusal:
        """See `Counters.admit`."""
        self._next_id += 1
        if not is_counted(limits):
            return Admission(key_id, self._next_id, self, _UNCHARGED, tokens, False, ())
        has_place = limits.concurrent is not None
        self._lock()
        try:
            now = self._clock()
            base = self._slot(key_id, int(now))
            passed = self._passed(base, limits, tokens)
            if passed == "places" and self._reap():
                passed = self._passed(base, limits, tokens)
            if not passed:
                self._charge(base, int(now), 1, tokens)
                if has_place:
                    place = self._first_place(base) + self._column * self._num_slots
                    self._words[place] += 1
                    self._open[self._next_id] = place
            used = self._used(base, now, limits, tokens if passed else None)
        finally:
            self._unlock()
        if passed:
            return refusal(limits, used, tokens)
        left = rooms(limits, used)
        return Admission(key_id, self._next_id, self, int(now), tokens, has_place, left)

    async def settle(self, admission: Admission, actual_tokens: int) -> None:
        """See `Counters.settle`."""
        more = actual_tokens - admission.tokens
        if not more or admission.second == _UNCHARGED:
            return
        self._change(partial(self._correct, admission, more))

    async def release(self, admission: Admission) -> None:
        """See `Counters.release`."""
        place = self._open.pop(admission.id, None)
        if place is None:
            return
        self._change(partial(self._give_back, place))

    async def close(self) -> None:
        """See `Counters.close`; places that are still held are cleared."""
        if self._fd < 0:
            return
        self._lock()
        try:
            self._clear(self._column)
        finally:
            self._unlock()
        self._words.release()
        os.close(self._fd)
        os.close(self._column_fd)
        self._fd = -1

    # the lock

    def _change(self, change: Callable[[], None]) -> None:
        """Make a change now, or with the next lock where this one cannot be had."""
        self._late.append(change)
        try:
            self._lock()
        except MachineError as error:
            log.warning("%s", Exception.__str__(error))
        else:
            self._unlock()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._wait_for_lock()
        if self._words[1]:
            self._repair(self._words[1] - 1)
        while self._late:
            self._late.popleft()()

    def _wait_for_lock(self) -> None:
        end = time.monotonic() + _LOCK_WAIT_S
        while time.monotonic() < end:
            time.sleep(20e-6)  # its holder needs microseconds
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return
        raise MachineError(
            f"another process has held the counters of limits for {_LOCK_WAIT_S * 1000:.0f} ms",
            hint="look for a gateway process that is stopped, and continue or kill it",
        )

    def _unlock(self) -> None:
        self._words[1] = 0
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _repair(self, base: int) -> None:
        """Sums of a slot whose last user died while it changed them: they follow from the rings."""
        words = self._words
        words[base + _REQUESTS] = sum(words[base + _REQUEST_RING : base + _TOKEN_RING])
        words[base + _TOKENS] = sum(words[base + _TOKEN_RING : base + _STRIDE])
        words[1] = 0

    # slots, under the lock

    def _slot(self, key_id: str, second: int) -> int:
        """Where a key's words begin, with the seconds that no longer count taken off."""
        words = self._words
        known = self._known.get(key_id)
        if known and words[known[0]] == known[1] and words[known[0] + 1] == known[2]:
            base = known[0]
        else:
            base = self._find(key_id, second)
        words[1] = base + 1
        gap = second - words[base + _SECOND]
        if gap:
            self._advance(base, second, gap)
        return base

    def _advance(self, base: int, second: int, gap: int) -> None:
        words = self._words
        if not 0 < gap < WINDOW:  # a gap below 0: the machine was started anew
            words[base + _REQUESTS : base + _STRIDE] = _NO_COUNTS
        elif words[base + _REQUESTS] or words[base + _TOKENS]:
            for place in range(second - gap + 1, second + 1):
                at = base + place % WINDOW
                words[base + _REQUESTS] -= words[at + _REQUEST_RING]
                words[at + _REQUEST_RING] = 0
                words[base + _TOKENS] -= words[at + _TOKEN_RING]
                words[at + _TOKEN_RING] = 0
        words[base + _SECOND] = second

    def _find(self, key_id: str, second: int) -> int:
        words = self._words
        high, low = struct.unpack("<qq", blake2b(key_id.encode(), digest_size=16).digest())
        high = high or 1
        free = -1
        for step in range(_REACH):
            base = _HEAD + ((low + step) & (self._num_slots - 1)) * _STRIDE
            if words[base] == high and words[base + 1] == low:
                break
            if free < 0 and self._is_free(base, second):
                free = base
            if not words[base]:
                base = self._take(free, high, low)
                break
        else:
            base = self._take(free, high, low)
        if len(self._known) >= self._num_slots:
            self._known.clear()
        self._known[key_id] = (base, high, low)
        return base

    def _is_free(self, base: int, second: int) -> bool:
        words = self._words
        if not words[base]:
            return True
        is_idle = not (words[base + _REQUESTS] or words[base + _TOKENS])
        is_idle = is_idle or not 0 <= second - words[base + _SECOND] < WINDOW
        return is_idle and not self._num_places(base)

    def _take(self, base: int, high: int, low: int) -> int:
        if base < 0:
            raise MachineError(
                f"the table of limits is full: {_REACH} slots are in use where a key would go",
                hint="raise the number of keys that it is made for",
            )
        words = self._words
        words[base + 1] = 0  # half a digest is no key's
        words[base + _SECOND] = 0
        words[base + _REQUESTS : base + _STRIDE] = _NO_COUNTS
        words[base] = high
        words[base + 1] = low
        return base

    def _correct(self, admission: Admission, more: int) -> None:
        second = int(self._clock())
        base = self._slot(admission.key_id, second)
        if more > 0:
            self._charge(base, second, 0, more)
        elif second - admission.second < WINDOW:
            self._charge(base, admission.second, 0, more)

    def _give_back(self, place: int) -> None:
        self._words[place] -= 1

    def _charge(self, base: int, second: int, requests: int, tokens: int) -> None:
        words = self._words
        at = base + second % WINDOW
        if requests:
            words[at + _REQUEST_RING] += requests
            words[base + _REQUESTS] += requests
        if tokens:
            words[at + _TOKEN_RING] += tokens
            words[base + _TOKENS] += tokens

    def _passed(self, base: int, limits: KeyLimits, tokens: int) -> str:
        """The limit that one more request would pass; empty where it may come in."""
        words = self._words
        most = limits.requests_per_minute
        if most is not None and words[base + _REQUESTS] >= most:
            return "requests"
        most = limits.tokens_per_minute
        if most is not None and words[base + _TOKENS] + tokens > most:
            return "tokens"
        most = limits.concurrent
        if most is not None and self._num_places(base) >= most:
            return "places"
        return ""

    def _num_places(self, base: int) -> int:
        return sum(self._words[self._first_place(base) :: self._num_slots])

    def _first_place(self, base: int) -> int:
        return self._columns + (base - _HEAD) // _STRIDE

    def _used(self, base: int, now: float, limits: KeyLimits, refused: int | None) -> Used:
        """What counts now.

        Args:
            base: of the slot.
            now: the moment.
            limits: the key's.
            refused: the tokens of a request that was refused; None where it was let in.
        """
        words = self._words
        most, allowed = limits.requests_per_minute, limits.tokens_per_minute
        requests, tokens = words[base + _REQUESTS], words[base + _TOKENS]
        places, wait_requests_s, wait_tokens_s = 0, 0.0, 0.0
        if refused is not None:
            places = self._num_places(base)
            if most is not None:
                wait_requests_s = self._wait_s(base + _REQUEST_RING, now, requests + 1 - most)
            if allowed is not None:
                wait_tokens_s = self._wait_s(base + _TOKEN_RING, now, tokens + refused - allowed)
        return Used(
            requests,
            tokens,
            places,
            wait_requests_s,
            wait_tokens_s,
            self._reset_s(base + _REQUEST_RING, now) if requests and most is not None else 0.0,
            self._reset_s(base + _TOKEN_RING, now) if tokens and allowed is not None else 0.0,
        )

    def _wait_s(self, ring: int, now: float, needed: int) -> float:
        """Seconds until so much is given back."""
        second = int(now)
        if needed <= 0:
            return 0.0
        for past in range(second - WINDOW + 1, second + 1):
            needed -= self._words[ring + past % WINDOW]
            if needed <= 0:
                return past + WINDOW - now
        return second + WINDOW - now

    def _reset_s(self, ring: int, now: float) -> float:
        """Seconds until all is given back."""
        second = int(now)
        for past in range(second, second - WINDOW, -1):
            if self._words[ring + past % WINDOW]:
                return past + WINDOW - now
        return 0.0

    # columns and the file

    def _claim_column(self) -> tuple[int, int]:
        for _ in range(3):  # one that is free may be locked for the moment of its clearing
            for column, path in enumerate(self._locks):
                fd = _try_lock(path)
                if fd is not None:
                    return column, fd
            time.sleep(0.01)
        os.close(self._fd)
        raise MachineError(
            f"{len(self._locks)} processes have the counters of limits open, all that may",
            hint="wait until old workers have drained, or allow more processes",
        )

    def _reap(self) -> bool:
        """Clear the columns of processes that are gone; whether there was time for it."""
        now = time.monotonic()
        if now - self._reaped_at < _REAP_EVERY_S:
            return False
        self._reaped_at = now
        for column in range(len(self._locks)):
            if column == self._column or not self._locks[column].exists():
                continue
            fd = _try_lock(self._locks[column])
            if fd is not None:
                self._clear(column)
                os.close(fd)
        return True

    def _clear(self, column: int) -> None:
        """Only its owner, or who holds its lock in the owner's stead, writes a column."""
        first = self._columns + column * self._num_slots
        zeros = memoryview(bytes(8 * self._num_slots)).cast("q")
        self._words[first : first + self._num_slots] = zeros

    def _map(self, path: Path) -> memoryview[int]:
        size = 8 * (self._columns + self._num_slots * len(self._locks))
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if os.fstat(self._fd).st_size == 0:
                os.ftruncate(self._fd, size)
            found = os.fstat(self._fd).st_size
            words = memoryview(mmap.mmap(self._fd, size)).cast("q") if found == size else None
            if words is not None and words[0] == 0:
                words[0] = _MAGIC
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        if words is None or words[0] != _MAGIC:
            os.close(self._fd)
            os.close(self._column_fd)
            raise MachineError(
                f"{path} is not a table of limits of this version", hint="remove it, start again"
            )
        return words


def _try_lock(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
