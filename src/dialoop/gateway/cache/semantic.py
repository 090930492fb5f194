"""Answers to questions that mean the same, where all else is equal.

Entries are grouped by `key.group_key`: tenant, scope, model, release, policy, every field and every
message before the last one. Only the user's last text may differ: the cosine of its embedding must
reach the threshold, and its numbers must be the same ones, since embeddings hardly see them.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dialoop.gateway.cache import tenant_digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
    Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]
    Embed = Callable[[str], Awaitable[Vector]]

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question that was looked up, and what was found."""

    group: tuple[bytes, ...]
    """All that must be equal, the numbers of the text included."""
    vector: Vector
    """Of length 1."""
    value: bytes | None


@dataclass(slots=True, eq=False)
class _Entry:
    group: tuple[bytes, ...]
    place: int
    """Among the entries of its group."""
    value: bytes
    ends_at: float


@dataclass(slots=True)
class _Group:
    """Entries that differ by the meaning of one text."""

    vectors: Matrix
    """One row an entry, and room for more."""
    entries: list[_Entry] = field(default_factory=list[_Entry])

    def nearest(self, vector: Vector) -> tuple[_Entry, float]:
        """The entry with the largest cosine, and that."""
        cosines = self.vectors[: len(self.entries)] @ vector
        best = int(np.argmax(cosines))
        return self.entries[best], float(cosines[best])

    def add(self, entry: _Entry, vector: Vector) -> None:
        if entry.place == len(self.vectors):
            self.vectors = np.concatenate((self.vectors, np.zeros_like(self.vectors)))
        self.vectors[entry.place] = vector
        self.entries.append(entry)

    def drop(self, entry: _Entry) -> None:
        """Take an entry out; the last one takes its place."""
        last = self.entries.pop()
        if last is not entry:
            self.entries[entry.place] = last
            self.vectors[entry.place] = self.vectors[last.place]
            last.place = entry.place


class SemanticCache:
    """Answers of this process by meaning.

    Args:
        embed: gives a text's embedding, of one length always.
        threshold: the least cosine of two questions with one answer, usually 0.9 to 0.99.
        max_entries: the least recently used go first; a look-up compares with all of its group.
        max_bytes: of all values together.
        clock: seconds.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        threshold: float,
        max_entries: int = 2000,
        max_bytes: int = 64 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._embed, self._threshold, self._clock = embed, threshold, clock
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._num_bytes = 0
        self._groups: dict[tuple[bytes, ...], _Group] = {}
        self._order: OrderedDict[_Entry, None] = OrderedDict()

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
        exact = (group, *(number.encode() for number in _NUMBER.findall(text)))
        return Lookup(exact, vector, self._find(exact, vector))

    def put(self, asked: Lookup, value: bytes, ttl_s: float) -> None:
        """Keep the answer to a question that was looked up."""
        if len(value) > self._max_bytes or ttl_s <= 0:
            return
        while (
            len(self._order) >= self._max_entries or self._num_bytes + len(value) > self._max_bytes
        ):
            self._drop(next(iter(self._order)))
        group = self._groups.get(asked.group)
        if group is None:
            group = _Group(np.zeros((1, len(asked.vector)), dtype=np.float32))
            self._groups[asked.group] = group
        entry = _Entry(asked.group, len(group.entries), value, self._clock() + ttl_s)
        group.add(entry, asked.vector)
        self._order[entry] = None
        self._num_bytes += len(value)

    def clear(self, tenant: str | None = None) -> None:
        """Drop the entries of a tenant, or all."""
        first = b"" if tenant is None else tenant_digest(tenant)
        for entry in list(self._order):
            if entry.group[0].startswith(first):
                self._drop(entry)

    def _find(self, exact: tuple[bytes, ...], vector: Vector) -> bytes | None:
        while group := self._groups.get(exact):
            entry, cosine = group.nearest(vector)
            if cosine < self._threshold:
                return None
            if entry.ends_at > self._clock():
                self._order.move_to_end(entry)
                return entry.value
            self._drop(entry)
        return None

    def _drop(self, entry: _Entry) -> None:
        del self._order[entry]
        self._num_bytes -= len(entry.value)
        group = self._groups[entry.group]
        group.drop(entry)
        if not group.entries:
            del self._groups[entry.group]
