"""Counters: what they count, what they remember, what they learn; images by their headers."""

import base64
import io
import time
from typing import Any, cast

import pytest
from tests.gateway.context.dialogues import (
    WEATHER,
    assistant,
    long_dialogue,
    make_template,
    tool_turn,
    user,
)

from dialoop.gateway.context.estimate import EstimateCounter
from dialoop.gateway.context.exact import TemplateCounter
from dialoop.gateway.context.images import LARGEST, fixed_tokens, internvl_tokens, size_of
from dialoop.gateway.context.manage import counter_for
from dialoop.gateway.context.outline import Dialogue
from dialoop.gateway.context.plan import plan
from dialoop.gateway.context.policy import ContextPolicy
from dialoop.gateway.context.recent import Recent


def picture(kind: str, width: int, height: int) -> str:
    """A picture in a data URL; a JPEG begins with 60 kB of a preview, as cameras write it."""
    image = pytest.importorskip("PIL.Image").new("RGB", (width, height))
    file = io.BytesIO()
    preview = {"exif": b"Exif\0\0" + b"x" * 60000} if kind == "JPEG" else {}
    image.save(file, kind, **preview)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_sizes_are_read_from_headers(kind: str) -> None:
    assert size_of(picture(kind, 1203, 77)) == (1203, 77)


def test_a_size_that_is_not_told_counts_as_the_largest() -> None:
    for source in ("https://example.org/a.png", "data:image/png;base64,AAAA", "data:image/png,x"):
        assert size_of(source) is None
        assert internvl_tokens(source) == LARGEST == 13 * 256 + 3
    assert size_of(picture("WEBP", 8, 8)) is None
    assert fixed_tokens(576)("x") == 576


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((448, 448), 1), ((100, 90), 1), ((896, 448), 3), ((4000, 3000), 13), ((448, 4480), 11)],
)
def test_tiles_are_internvls(size: tuple[int, int], tiles: int) -> None:
    # as `dynamic_preprocess(max_num=12, use_thumbnail=True)` of the model's card cuts them
    assert internvl_tokens(picture("PNG", *size)) == tiles * 256 + 3


def test_a_turn_is_counted_message_by_message(any_counter: TemplateCounter) -> None:
    turn = tool_turn(1, "Oslo")
    counts = any_counter.turn(turn)
    assert len(counts) == 4
    assert min(counts) > 0
    whole = any_counter.whole([*turn, *turn], (WEATHER,))
    assert any_counter.fixed([], (WEATHER,)) + 2 * sum(counts) == pytest.approx(whole, abs=8)


def test_images_count_beside_the_text(counter: TemplateCounter) -> None:
    url = picture("PNG", 448, 448)
    content = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}]
    assert counter.turn([user(content)])[0] == counter.turn([user("hi")])[0] + 259
    assert counter.whole([user(content)], ()) == counter.whole([user("hi")], ()) + 259


def test_the_policy_says_how_images_count(tmp_path) -> None:
    template = make_template(tmp_path, "chatml")
    url = picture("PNG", 448, 448)
    message = user([{"type": "image_url", "image_url": {"url": url}}])
    for made, window in ((template, 300), (None, 300)):
        fixed = counter_for(ContextPolicy(image_tokens=1000), made, window)
        tiled = counter_for(ContextPolicy(), made, window)
        assert fixed.window_tokens == 300
        assert fixed.turn([message])[0] - tiled.turn([message])[0] == 1000 - 259
        assert fixed.is_exact == (made is not None)


def test_reasoning_and_tools_count(tmp_path) -> None:
    counter = TemplateCounter(make_template(tmp_path, "native"))
    plain = [user("hi"), assistant("hello")]
    thought = [user("hi"), assistant("hello", reasoning_content="a long thought of mine")]
    assert sum(counter.turn(thought)) > sum(counter.turn(plain)) + 5
    assert counter.fixed([], (WEATHER,)) > counter.fixed([], ()) + 50
    assert counter.window_tokens == 512


def test_counts_are_remembered(tmp_path) -> None:
    class Watched:
        calls = 0

        def __init__(self, inner) -> None:
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def encode(self, text: str):
            Watched.calls += 1
            return self._inner.encode(text)

    template = make_template(tmp_path, "chatml")
    watched = type(template)(
        cast("Any", Watched(template.tokenizer)), "x", template.source, template.source
    )
    counter = TemplateCounter(watched)
    messages = long_dialogue(20)
    policy = ContextPolicy(window_tokens=4096)
    plan(Dialogue(messages), policy, counter)
    assert Watched.calls > 20
    Watched.calls = 0
    plan(Dialogue([*messages, user("One more.")]), policy, counter)
    assert Watched.calls <= 2


def test_planning_forty_turns_is_quick(counter: TemplateCounter) -> None:
    messages = long_dialogue(40)
    policy = ContextPolicy(strategy="drop", window_tokens=1000)
    best = 1.0
    for number in range(30):
        began = time.perf_counter()
        plan(Dialogue([*messages, user(f"And {number}?")]), policy, counter)
        best = min(best, time.perf_counter() - began)
    assert best < 0.004  # 1 ms on the machine of docs/experiments.md


def test_a_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory: Recent[int] = Recent(2)
    memory.put(b"a", 1)
    memory.put(b"b", 2)
    assert memory.get(b"a") == 1
    memory.put(b"c", 3)
    assert len(memory) == 2
    assert memory.get(b"b") is None
    assert memory.get(b"a") == 1


def test_estimates_are_above_real_counts_and_learn(counter: TemplateCounter) -> None:
    guess = EstimateCounter(4096)
    english = [user("I would like to know where my order is. " * 20)]
    first = guess.whole(english, ())
    for _ in range(200):
        guess.learn(english, 200)
    learned = guess.whole(english, ())
    assert learned < first / 1.5
    assert 200 * 1.1 <= learned <= 200 * 1.1 + 80
    guess.learn(english, 400)
    assert guess.whole(english, ()) >= 400 * 1.1
    chinese = [user("我的订单在哪里" * 30)]
    before = guess.whole(chinese, ())
    assert before >= 7 * 30
    guess.learn([user("mixed 混合的文字" * 30)], 10_000)
    assert guess.whole(chinese, ()) == before
    assert guess.whole([*tool_turn(1, "Oslo")], (WEATHER,)) > 100
