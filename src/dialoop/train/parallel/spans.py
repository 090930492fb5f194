"""Which tokens of a packed row each rank holds, and which of them meet in attention.

A rank holds one or two spans (start, stop) of the row. `contiguous` gives each rank one; `zigzag`
cuts the row into two parts a rank and gives rank r the parts r and 2n-1-r, so that under a causal
mask all ranks have the same work (Llama 3, arXiv:2407.21783, section 3.3.2). Documents may straddle
any cut, and parts may be empty.

T is the tokens of the row, t those of a rank.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Span = tuple[int, int]
Spans = tuple[Span, ...]


def contiguous(num_tokens: int, size: int) -> list[Spans]:
    """One span a rank, lengths differing by at most one token."""
    return [(part,) for part in _parts((0, num_tokens), size)]


def zigzag(num_tokens: int, size: int) -> list[Spans]:
    """Two spans a rank, one from the front and its mirror from the back."""
    parts = _parts((0, num_tokens), 2 * size)
    return [(parts[rank], parts[2 * size - 1 - rank]) for rank in range(size)]


def subdivide(spans: Spans, size: int) -> list[Spans]:
    """The tokens of some spans, in order, dealt to ranks as equal runs."""
    return [_between(spans, run) for run in _parts((0, length(spans)), size)]


def length(spans: Spans) -> int:
    """How many tokens: t."""
    return sum(stop - start for start, stop in spans)


def indices(spans: Spans) -> list[int]:
    """The places in the row, in the order in which the rank holds them: (t,)."""
    return [i for start, stop in spans for i in range(start, stop)]


def places(spans: Spans) -> Iterator[tuple[Span, Span]]:
    """Each span of the row, and where it lies among the rank's own tokens."""
    offset = 0
    for start, stop in spans:
        yield (start, stop), (offset, offset + stop - start)
        offset += stop - start


@dataclass(frozen=True, slots=True)
class Window:
    """The keys that the queries of one span need, documents packed on both sides."""

    queries: Span
    """Within the row."""
    keys: Span
    """Within the row: from the start of the first query's document to the last query."""
    query_bounds: tuple[int, ...]
    """Document boundaries counted from the first query."""
    key_bounds: tuple[int, ...]
    """The same documents' boundaries counted from the first key; each document's keys end where
    its queries end, so that a causal mask is aligned at the end."""


def window(span: Span, bounds: tuple[int, ...]) -> Window:
    """What a span of queries attends to.

    Args:
        span: not empty.
        bounds: document boundaries of the row, 0 first and T last.
    """
    start, stop = span
    first = bounds[bisect_right(bounds, start) - 1]
    inner = bounds[bisect_right(bounds, start) : bisect_left(bounds, stop)]
    return Window(
        queries=span,
        keys=(first, stop),
        query_bounds=tuple(b - start for b in (start, *inner, stop)),
        key_bounds=tuple(b - first for b in (first, *inner, stop)),
    )


def crossing(queries: Span, keys: Span, bounds: tuple[int, ...]) -> tuple[Span, Span] | None:
    """The part of two spans that meets in attention where the keys lie before the queries.

    Only a document that straddles from the one into the other has keys that these queries see, and
    there is at most one.

    Returns:
        The queries and the keys of it within the row; None when no document straddles.
    """
    if queries[0] == queries[1] or keys[0] == keys[1]:
        return None
    place = bisect_right(bounds, queries[0])
    start, stop = bounds[place - 1], bounds[place]
    if start >= keys[1]:
        return None
    return (queries[0], min(stop, queries[1])), (max(start, keys[0]), keys[1])


def _parts(span: Span, size: int) -> list[Span]:
    start, total = span[0], span[1] - span[0]
    cuts = [start + total * i // size for i in range(size + 1)]
    return [(cuts[i], cuts[i + 1]) for i in range(size)]


def _between(spans: Spans, run: Span) -> Spans:
    """The spans of the tokens that stand at `run` when all are laid end to end."""
    found: list[Span] = []
    offset = 0
    for start, stop in spans:
        low = max(run[0] - offset, 0) + start
        high = min(run[1] - offset + start, stop)
        if low < high:
            found.append((low, high))
        offset += stop - start
    return tuple(found)
