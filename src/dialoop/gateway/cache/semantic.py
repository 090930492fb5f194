"""Answers to questions that mean the same, where all else is equal.

Entries are grouped by `key.group_key`: tenant, scope, model, release, policy, every field and every
message before the last one. Only the user's last text may differ: the cosine of its embedding must
reach the threshold, and its numbers must be the same ones, since embeddings hardly see them.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dialoop.gateway.cache import TENANT_BYTES, tenant_digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
    Embed = Callable[[str], Awaitable[Vector]]

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question that was looked up, and what was found."""

    group: bytes
    vector: Vector
    """Of length 1."""
    numbers: tuple[str, ...]
    value: bytes | None


@dataclass(frozen=True, slots=True)
class _Entry:
    group: bytes
    numbers: tuple[str, ...]
    value: bytes
    ends_at: float


class SemanticCache:
    """Answers of this process by meaning.

    Args:
        embed: gives a text's embedding, of one length always.
        threshold: the least cosine of two questions with one answer, usually 0.9 to 0.99.
        max_entries: the least recently used go first.
        max_bytes: of all values together.
        clock: seconds.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        threshold: float,
        max_entries: int = 10_000,
        max_bytes: int = 64 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._embed, self._threshold, self._clock = embed, threshold, clock
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._num_bytes = 0
        self._vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None = None
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by row of the vectors
        self._groups: dict[bytes, list[int]] = {}
        self._free = list(range(max_entries - 1, -1, -1))

    async def get(self, group: bytes, text: str) -> Lookup:
        """Look a question up.

        Args:
            group: of `key.group_key`.
            text: the user's last message.

        Raises:
            UpstreamError: the embedding failed.
        """
        vector = np.asarray(await self._embed(text), dtype=np.float32)
        length = float(np.linalg.norm(vector))
        vector = vector / length if length else vector
        numbers = tuple(_NUMBER.findall(text))
        return Lookup(group, vector, numbers, self._find(group, vector, numbers))

    def put(self, asked: Lookup, value: bytes, ttl_s: float) -> None:
        """Keep the answer to a question that was looked up."""
        if len(value) > self._max_bytes or ttl_s <= 0:
            return
        while not self._free or self._num_bytes + len(value) > self._max_bytes:
            self._drop(next(iter(self._entries)))
        if self._vectors is None:
            self._vectors = np.zeros((self._max_entries, len(asked.vector)), dtype=np.float32)
        row = self._free.pop()
        self._vectors[row] = asked.vector
        self._entries[row] = _Entry(asked.group, asked.numbers, value, self._clock() + ttl_s)
        self._groups.setdefault(asked.group, []).append(row)
        self._num_bytes += len(value)

    def clear(self, tenant: str | None = None) -> None:
        """Drop the entries of a tenant, or all."""
        first = b"" if tenant is None else tenant_digest(tenant)
        for row, entry in list(self._entries.items()):
            if entry.group[:TENANT_BYTES].startswith(first):
                self._drop(row)

    def _find(self, group: bytes, vector: Vector, numbers: tuple[str, ...]) -> bytes | None:
        now = self._clock()
        for row in [r for r in self._groups.get(group, ()) if self._entries[r].ends_at <= now]:
            self._drop(row)
        rows = [r for r in self._groups.get(group, ()) if self._entries[r].numbers == numbers]
        if not rows or self._vectors is None:
            return None
        cosines = self._vectors[rows] @ vector
        best = int(np.argmax(cosines))
        if cosines[best] < self._threshold:
            return None
        self._entries.move_to_end(rows[best])
        return self._entries[rows[best]].value

    def _drop(self, row: int) -> None:
        entry = self._entries.pop(row)
        self._num_bytes -= len(entry.value)
        self._groups[entry.group].remove(row)
        if not self._groups[entry.group]:
            del self._groups[entry.group]
        self._free.append(row)
