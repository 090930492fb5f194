"""Counters that several gateways share: one script a step, by the clock of Redis.

A key has a list of (second, requests, tokens), packed in one string, and a sorted set of leases,
one for each concurrent request. A lease ends by itself unless its gateway renews it. While Redis is
away each gateway keeps to its share in counters of its own; what was admitted on one side is not
known on the other, so that the minutes at both edges of an outage may see up to twice the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dialoop.core.errors import UpstreamError
from dialoop.gateway.limits import (
    Admission,
    Counters,
    Refusal,
    Used,
    is_counted,
    refusal,
    rooms,
)

if TYPE_CHECKING:
    from dialoop.gateway.keys import KeyLimits
    from dialoop.gateway.redis_client import RedisClient

# KEYS: counts, leases. ARGV: tokens, limits (-1: none) of requests, tokens and places, lease, ms.
# A second that lies ahead counts as this one: the clock of Redis was set back.
_ADMIT = """
local time = redis.call('TIME')
local second, micros = tonumber(time[1]), tonumber(time[2])
local asked, most, allowed = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local rows, requests, tokens = {}, 0, 0
local raw = redis.call('GET', KEYS[1])
if raw then
  local old = cmsgpack.unpack(raw)
  for i = 1, #old, 3 do
    if old[i] > second - 61 then
      local n = #rows
      rows[n + 1], rows[n + 2], rows[n + 3] = math.min(old[i], second), old[i + 1], old[i + 2]
      requests, tokens = requests + old[i + 1], tokens + old[i + 2]
    end
  end
end
local function millis(past) return (past + 61 - second) * 1000 - math.floor(micros / 1000) end
local function wait(column, needed)
  if needed <= 0 then return 0 end
  for i = 1, #rows, 3 do
    needed = needed - rows[i + column]
    if needed <= 0 then return millis(rows[i]) end
  end
  return millis(second)
end
local function reset(column)
  for i = #rows - 2, 1, -3 do if rows[i + column] > 0 then return millis(rows[i]) end end
  return 0
end
local places, is_full = 0, false
if tonumber(ARGV[4]) >= 0 then
  local now = second * 1000 + math.floor(micros / 1000)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  places = redis.call('ZCARD', KEYS[2])
  is_full = places >= tonumber(ARGV[4])
end
local wait_requests = most >= 0 and wait(1, requests + 1 - most) or 0
local wait_tokens = allowed >= 0 and wait(2, tokens + asked - allowed) or 0
local is_over = (most >= 0 and requests + 1 > most) or (allowed >= 0 and tokens + asked > allowed)
if is_full or is_over then
  return {0, second, requests, tokens, places, wait_requests, wait_tokens, reset(1), reset(2)}
end
local n = #rows
if n > 0 and rows[n - 2] == second then
  rows[n - 1], rows[n] = rows[n - 1] + 1, rows[n] + asked
else
  rows[n + 1], rows[n + 2], rows[n + 3] = second, 1, asked
end
redis.call('SET', KEYS[1], cmsgpack.pack(rows), 'EX', 62)
if tonumber(ARGV[4]) >= 0 then
  local ends = second * 1000 + math.floor(micros / 1000) + tonumber(ARGV[6])
  redis.call('ZADD', KEYS[2], ends, ARGV[5])
  redis.call('PEXPIRE', KEYS[2], tonumber(ARGV[6]) * 2)
end
return {1, second, requests + 1, tokens + asked, places + 1, 0, 0, reset(1), reset(2)}
"""
# KEYS: counts. ARGV: second of the admission, tokens to add.
_SETTLE = """
local second, more = tonumber(redis.call('TIME')[1]), tonumber(ARGV[2])
local raw = redis.call('GET', KEYS[1])
local rows = raw and cmsgpack.unpack(raw) or {}
local n = #rows
if more < 0 then
  for i = 1, n, 3 do
    if rows[i] == tonumber(ARGV[1]) then
      rows[i + 2] = math.max(0, rows[i + 2] + more)
      break
    end
  end
elseif n > 0 and rows[n - 2] >= second then
  rows[n] = rows[n] + more
else
  rows[n + 1], rows[n + 2], rows[n + 3] = second, 0, more
end
if #rows > 0 then redis.call('SET', KEYS[1], cmsgpack.pack(rows), 'EX', 62) end
"""
# KEYS: leases. ARGV: ms, leases.
_RENEW = """
local time = redis.call('TIME')
local ends = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ends, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[1]) * 2)
"""


_OUTAGE_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class _Scripts:
    admit: str
    settle: str
    renew: str


class RedisCounters(Counters):
    """The counters of all gateways that name the same Redis.

    Args:
        client: not open yet.
        local: counts while Redis is away; closed with this.
        num_gateways: among which the limits are divided then.
        lease_s: how long a concurrent place outlives its gateway.
        prefix: of the names of keys in Redis.
    """

    def __init__(
        self,
        client: RedisClient,
        local: Counters,
        *,
        num_gateways: int = 1,
        lease_s: float = 30.0,
        prefix: str = "dialoop",
    ) -> None:
        self._client, self._local, self._num_gateways = client, local, num_gateways
        self._lease_s, self._lease_ms = lease_s, int(lease_s * 1000)
        self._prefix = prefix
        self._scripts = _Scripts(
            client.add_script(_ADMIT), client.add_script(_SETTLE), client.add_script(_RENEW)
        )
        self._shares: dict[KeyLimits, KeyLimits] = {}
        self._owner = secrets.token_hex(8)
        self._next_id = 0
        self._leases: dict[int, str] = {}  # admission -> key
        self._renewing: asyncio.Task[None] | None = None

    async def admit(self, key_id: str, limits: KeyLimits, tokens: int) -> Admission | Refusal:
        """See `Counters.admit`."""
        if not is_counted(limits) or not self._client.is_up:
            return await self._admit_here(key_id, limits, tokens)
        self._next_id += 1
        number = self._next_id
        try:
            reply: list[int] = await self._client.call(
                "EVALSHA",
                self._scripts.admit,
                2,
                self._counts(key_id),
                self._places(key_id),
                tokens,
                _or_none(limits.requests_per_minute),
                _or_none(limits.tokens_per_minute),
                _or_none(limits.concurrent),
                self._lease(number),
                self._lease_ms,
            )
        except UpstreamError:
            return await self._admit_here(key_id, limits, tokens)
        except asyncio.CancelledError:
            # nobody will release it; this comes after the script on the same connection
            self._client.post("ZREM", self._places(key_id), self._lease(number))
            raise
        used = Used(
            reply[2],
            reply[3],
            reply[4],
            *(millis / 1000 for millis in reply[5:]),
        )
        if not reply[0]:
            return refusal(limits, used, tokens)
        has_place = limits.concurrent is not None
        if has_place:
            self._leases[number] = key_id
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew())
        return Admission(key_id, number, self, reply[1], tokens, has_place, rooms(limits, used))

    async def settle(self, admission: Admission, actual_tokens: int) -> None:
        """See `Counters.settle`; sent without waiting for Redis."""
        if admission.home is not self:
            await admission.home.settle(admission, actual_tokens)
            return
        more = actual_tokens - admission.tokens
        if more:
            counts = self._counts(admission.key_id)
            self._client.post("EVALSHA", self._scripts.settle, 1, counts, admission.second, more)

    async def release(self, admission: Admission) -> None:
        """See `Counters.release`; sent without waiting for Redis."""
        if admission.home is not self:
            await admission.home.release(admission)
        elif self._leases.pop(admission.id, None) is not None:
            self._client.post("ZREM", self._places(admission.key_id), self._lease(admission.id))

    async def close(self) -> None:
        """See `Counters.close`; leases that are still held end by themselves."""
        if self._renewing:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        await self._local.close()

    async def _admit_here(self, key_id: str, limits: KeyLimits, tokens: int) -> Admission | Refusal:
        found = await self._local.admit(key_id, self._share(limits), tokens)
        is_too_large = isinstance(found, Refusal) and found.retry_after_s is None
        if is_too_large and tokens <= (limits.tokens_per_minute or tokens):
            return replace(found, retry_after_s=_OUTAGE_RETRY_S)  # only the share is too small
        return found

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            by_key: dict[str, list[str]] = {}
            for number, key_id in self._leases.items():
                by_key.setdefault(key_id, []).append(self._lease(number))
            for key_id, leases in by_key.items():
                places = self._places(key_id)
                self._client.post(
                    "EVALSHA", self._scripts.renew, 1, places, self._lease_ms, *leases
                )

    def _lease(self, number: int) -> str:
        return f"{self._owner}:{number}"

    def _counts(self, key_id: str) -> str:
        return f"{self._prefix}:limits:{{{key_id}}}:counts"

    def _places(self, key_id: str) -> str:
        return f"{self._prefix}:limits:{{{key_id}}}:places"

    def _share(self, limits: KeyLimits) -> KeyLimits:
        """This gateway's part, at least 1 of what is allowed at all."""
        found = self._shares.get(limits)
        if found is None:
            found = replace(
                limits,
                requests_per_minute=self._part(limits.requests_per_minute),
                tokens_per_minute=self._part(limits.tokens_per_minute),
                concurrent=self._part(limits.concurrent),
            )
            if len(self._shares) > 10_000:
                self._shares.clear()
            self._shares[limits] = found
        return found

    def _part(self, limit: int | None) -> int | None:
        return None if limit is None else min(limit, max(1, limit // self._num_gateways))


def _or_none(limit: int | None) -> int:
    return -1 if limit is None else limit
