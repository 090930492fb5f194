"""Answers by meaning, never across what must be equal."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoop.gateway.cache import tenant_digest
from dialoop.gateway.cache.semantic import SemanticCache

GROUP = tenant_digest("t") + b"group"
WORDS = {"reset": 0, "password": 1, "forgot": 1, "price": 2, "how": 3, "order": 4}


async def embed(text: str) -> Any:
    """Counts of a few words; some words mean the same."""
    vector = np.zeros(5, dtype=np.float32)
    for word in text.lower().split():
        if word in WORDS:
            vector[WORDS[word]] += 1
    return vector


def test_the_same_meaning_is_found_and_another_is_not() -> None:
    async def main() -> None:
        cache = SemanticCache(embed, threshold=0.9)
        asked = await cache.get(GROUP, "reset password")
        assert asked.value is None
        cache.put(asked, b"answer", 60)
        assert (await cache.get(GROUP, "forgot ... reset")).value == b"answer"
        assert (await cache.get(GROUP, "reset password how")).value is None, "cosine 0.82"
        assert (await cache.get(GROUP, "price")).value is None
        assert (await cache.get(GROUP, "nothing known")).value is None, "an embedding of zeros"

    asyncio.run(main())


def test_the_nearest_of_several_is_given() -> None:
    async def main() -> None:
        cache = SemanticCache(embed, threshold=0.5)
        for text in ("reset", "reset password", "price"):
            cache.put(await cache.get(GROUP + b"!", text), b"decoy", 60)
            cache.put(await cache.get(GROUP, text), text.encode(), 60)
        assert (await cache.get(GROUP, "forgot reset")).value == b"reset password"

    asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=3), st.sampled_from(sorted(WORDS))), max_size=20))
def test_no_group_sees_the_answers_of_another(puts: list[tuple[bytes, str]]) -> None:
    async def main() -> None:
        cache = SemanticCache(embed, threshold=0.0)
        for group, text in puts:
            cache.put(await cache.get(group, text), group, 60)
        for group, text in puts:
            assert (await cache.get(group, text)).value == group
        assert (await cache.get(b"a group of nobody", "reset")).value is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "again", "is_found"),
    [
        ("price of order 12", "order 12 price", True),
        ("price of order 12", "price of order 13", False),
        ("price of order 12", "price of order", False),
        ("order at 10:30", "order at 10:31", False),
    ],
)
def test_other_numbers_are_other_questions(asked: str, again: str, is_found: bool) -> None:
    async def main() -> None:
        cache = SemanticCache(embed, threshold=0.9)
        cache.put(await cache.get(GROUP, asked), b"answer", 60)
        assert ((await cache.get(GROUP, again)).value is not None) is is_found

    asyncio.run(main())


def test_entries_end_and_the_least_recently_used_go_first() -> None:
    now = [0.0]

    async def main() -> None:
        cache = SemanticCache(
            embed, threshold=0.9, max_entries=2, max_bytes=10, clock=lambda: now[0]
        )
        cache.put(await cache.get(GROUP, "reset"), b"1", 60)
        cache.put(await cache.get(GROUP, "price"), b"2", 5)
        assert (await cache.get(GROUP, "reset")).value == b"1"
        cache.put(await cache.get(GROUP, "how"), b"3", 60)
        assert (await cache.get(GROUP, "price")).value is None, "used least recently"
        assert (await cache.get(GROUP, "reset")).value == b"1"
        now[0] = 60.0
        assert (await cache.get(GROUP, "reset")).value is None
        cache.put(await cache.get(GROUP, "order"), b"123456", 60)
        cache.put(await cache.get(GROUP, "reset"), b"123456", 60)
        assert (await cache.get(GROUP, "order")).value is None, "10 bytes in all"
        cache.put(await cache.get(GROUP, "price"), b"x" * 11, 60)
        assert (await cache.get(GROUP, "price")).value is None
        assert (await cache.get(GROUP, "reset")).value == b"123456"

    asyncio.run(main())


def test_a_tenant_is_cleared_alone() -> None:
    async def main() -> None:
        cache = SemanticCache(embed, threshold=0.9)
        other = tenant_digest("u") + b"group"
        for group in (GROUP, other):
            cache.put(await cache.get(group, "reset"), b"1", 60)
        cache.clear("t")
        assert (await cache.get(GROUP, "reset")).value is None
        assert (await cache.get(other, "reset")).value == b"1"
        cache.clear()
        assert (await cache.get(other, "reset")).value is None

    asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from(sorted(WORDS)), st.booleans()),
        max_size=40,
    )
)
def test_rows_follow_their_entries_when_others_go(steps: list[tuple[bytes, str, bool]]) -> None:
    """Puts and hits in any order: what is found is always an answer to the word asked."""

    async def main() -> None:
        cache = SemanticCache(embed, threshold=0.9, max_entries=3)
        for group, word, is_put in steps:
            asked = await cache.get(group, word)
            meaning = group + b"%d" % WORDS[word]
            assert asked.value in (None, meaning)
            if is_put:
                cache.put(asked, meaning, 60)
                assert (await cache.get(group, word)).value == meaning

    asyncio.run(main())
