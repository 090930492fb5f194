"""Choices of engines: by load, by conversation, by weight."""

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from dialoop.gateway.routing import by_affinity, conversation_key, least_loaded, pick_weighted


@dataclass
class Candidate:
    label: str
    load: float = 0


def candidates(num: int) -> list[Candidate]:
    return [Candidate(f"10.0.0.{n}:8000") for n in range(num)]


def test_an_engine_that_leaves_moves_its_own_conversations_only():
    every = candidates(5)
    before = {key: by_affinity(every, key).label for key in range(4000)}
    gone = every.pop(2).label
    for key, label in before.items():
        moved = by_affinity(every, key).label
        assert moved == label or label == gone


def test_conversations_spread_evenly_and_a_dead_engine_s_over_all_others():
    every = candidates(5)
    counts = Counter(by_affinity(every, key).label for key in range(10_000))
    assert all(1800 < num < 2200 for num in counts.values())
    lost = [key for key in range(10_000) if by_affinity(every, key) is every[0]]
    heirs = Counter(by_affinity(every[1:], key).label for key in lost)
    assert len(heirs) == 4
    assert min(heirs.values()) > len(lost) / 4 * 0.8


def test_the_order_of_engines_changes_nothing():
    every = candidates(4)
    for key in range(100):
        assert by_affinity(every, key) is by_affinity(every[::-1], key)


def test_no_engine_gets_much_more_than_the_mean_load():
    every = candidates(4)
    for number in range(2000):
        by_affinity(every, number % 3, 1.0).load += 1  # three busy conversations
        mean = (number + 1) / 4
        assert max(one.load for one in every) <= mean * 1.25 + 5


def test_a_busy_engine_keeps_its_conversation_within_the_bound():
    every = candidates(4)
    own = by_affinity(every, 7)
    own.load = 4
    assert by_affinity(every, 7) is own
    own.load = 40
    other = by_affinity(every, 7)
    assert other is not own
    assert by_affinity(every, 7) is other


def test_the_less_loaded_of_two_is_taken():
    every = candidates(3)
    every[0].load, every[1].load, every[2].load = 9, 5, 1
    random = Random(0)
    counts = Counter(least_loaded(every, random).load for _ in range(3000))
    assert counts[9] == 0
    assert counts[1] == pytest.approx(2000, rel=0.1)


def test_weights_are_kept_within_two_percent_and_conversations_keep_their_version():
    weights = (95.0, 0.0, 5.0)
    chosen = [pick_weighted(weights, key) for key in range(20_000)]
    counts = Counter(chosen)
    assert counts[1] == 0
    assert counts[0] / 20_000 == pytest.approx(0.95, abs=0.02)
    assert chosen == [pick_weighted(weights, key) for key in range(20_000)]


def test_a_canary_that_grows_only_takes_conversations_over():
    small = [pick_weighted((95.0, 5.0), key) for key in range(5000)]
    large = [pick_weighted((50.0, 50.0), key) for key in range(5000)]
    assert all(after == 1 for before, after in zip(small, large, strict=True) if before == 1)


def dialogue(*texts: str) -> dict[str, object]:
    roles = ["system", *["user", "assistant"] * len(texts)]
    return {
        "messages": [
            {"role": role, "content": text} for role, text in zip(roles, texts, strict=False)
        ]
    }


def test_all_turns_of_a_dialogue_have_one_key():
    first = conversation_key(dialogue("be kind", "hi"), None)
    assert first is not None
    assert first == conversation_key(dialogue("be kind", "hi", "hello", "how are you"), None)
    assert first != conversation_key(dialogue("be kind", "ho"), None)
    assert first != conversation_key(dialogue("be rude", "hi"), None)


def test_a_name_of_the_conversation_goes_first():
    named = conversation_key(dialogue("be kind", "hi"), "session-1")
    assert named == conversation_key(dialogue("other", "words"), "session-1")
    assert named != conversation_key(dialogue("be kind", "hi"), "session-2")
    by_cache = {"prompt_cache_key": "a"}
    assert conversation_key(dialogue("a") | by_cache, None) == conversation_key(
        dialogue("b") | by_cache, None
    )


def test_what_tells_nothing_has_no_key():
    assert conversation_key({"input": ["a"]}, None) is None
    assert conversation_key({"messages": []}, None) is None


def test_parts_of_messages_tell_conversations_apart():
    def key(*parts: object) -> int | None:
        return conversation_key({"messages": [{"role": "user", "content": [*parts]}]}, None)

    text, other = {"type": "text", "text": "hi"}, {"type": "text", "text": "ho"}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    another = {"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}
    keys = [key(text), key(other), key(text, image), key(text, another)]
    assert len({*keys}) == 4
    assert key(text, image) == key(dict(text), dict(image))
