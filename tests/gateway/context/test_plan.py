"""Plans: what is always sent, what is left out, refusals, and what holds for any dialogue."""

import base64
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.context.dialogues import (
    WEATHER,
    assistant,
    long_dialogue,
    tool_turn,
    user,
)

from dialoop.chat.message import from_openai, tool_from_openai
from dialoop.gateway.context.estimate import EstimateCounter
from dialoop.gateway.context.exact import TemplateCounter
from dialoop.gateway.context.facts import key_facts
from dialoop.gateway.context.outline import Dialogue, is_surely_within, outline
from dialoop.gateway.context.plan import plan
from dialoop.gateway.context.policy import ContextPolicy
from dialoop.gateway.context.turns import digest, text_of
from dialoop.gateway.context.view import ContextPlan, Summary
from dialoop.serve.failure import ApiError

PNG = (
    "data:image/png;base64,"
    + base64.b64encode(
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (448).to_bytes(4) + (448).to_bytes(4)
    ).decode()
)
TEXTS = st.text("ab c中文订单12,.\n", min_size=1, max_size=60).filter(str.strip)
CONTENTS = st.one_of(
    TEXTS,
    TEXTS.map(
        lambda text: [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": PNG}},
        ]
    ),
)
PLAIN_TURNS = st.tuples(CONTENTS, TEXTS, st.none() | TEXTS).map(
    lambda it: [user(it[0]), assistant(it[1], **({"reasoning_content": it[2]} if it[2] else {}))]
)
TURNS = st.one_of(PLAIN_TURNS, st.sampled_from("ABC").map(lambda place: tool_turn(1, place)))
POLICIES = st.builds(
    ContextPolicy,
    strategy=st.sampled_from(["refuse", "drop", "summarize"]),
    window_tokens=st.integers(100, 2000),
    keep_recent_turns=st.integers(1, 3),
)


@st.composite
def dialogues(draw: st.DrawFn) -> Dialogue:
    messages: list[Any] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXTS)})
    for turn in draw(st.lists(TURNS, max_size=12)):
        messages += turn
    messages.append(user(draw(TEXTS)))
    return Dialogue(
        messages,
        tools=draw(st.sampled_from([(), (WEATHER,)])),
        pins=draw(st.lists(TEXTS, max_size=2)),
        max_tokens=draw(st.none() | st.integers(1, 100)),
    )


def planned(dialogue: Dialogue, policy: ContextPolicy, counter: TemplateCounter) -> ContextPlan:
    """The plan with a summary where one is wanted, as the manager has it."""
    found = outline(dialogue, policy, counter)
    if not found.summary_room:
        return plan(dialogue, policy, counter)
    before = found.messages_before(found.start)
    text = key_facts(before, found.summary_room, counter.text) or "nothing"
    return plan(dialogue, policy, counter, Summary(text, found.start, digest(before)))


def planned_or_refused(
    dialogue: Dialogue, policy: ContextPolicy, counter: TemplateCounter
) -> ContextPlan | ApiError:
    try:
        return planned(dialogue, policy, counter)
    except ApiError as error:
        return error


def true_tokens(made: ContextPlan, dialogue: Dialogue, counter: TemplateCounter) -> int:
    """What the engine will count: by the template alone, nothing remembered."""
    messages, pictures = [], 0
    for item in made.messages:
        if isinstance(item["content"], list):
            pictures += sum(part["type"] == "image_url" for part in item["content"])
            texts = [part for part in item["content"] if part["type"] == "text"]
            item = item | {"content": texts}
        messages.append(from_openai(item))
    tools = [tool_from_openai(tool) for tool in dialogue.tools]
    return len(counter._template.prompt_ids(messages, tools)) + pictures * (256 + 3)


COMMON = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@COMMON
@given(dialogue=dialogues(), policy=POLICIES)
def test_what_is_sent_fits_the_window_or_is_refused(
    any_counter: TemplateCounter, dialogue: Dialogue, policy: ContextPolicy
) -> None:
    made = planned_or_refused(dialogue, policy, any_counter)
    if isinstance(made, ApiError):
        assert made.code == "context_length_exceeded"
        numbers = re.search(r"is (\d+) tokens. What must be sent takes (\d+)", str(made))
        assert numbers is not None
        assert int(numbers[2]) > int(numbers[1]) == policy.window_tokens
        return
    assert made.tokens == true_tokens(made, dialogue, any_counter)
    assert made.tokens + made.answer_tokens <= made.window_tokens
    assert made.answer_tokens >= (dialogue.max_tokens or 1)
    assert made == planned(dialogue, policy, any_counter)
    assert made == planned(
        dialogue, policy, TemplateCounter(any_counter._template, window_tokens=4096)
    )
    kept = [n for n, _ in enumerate(dialogue.messages) if fate(made, n) == "kept"]
    first = next(n for n in kept if dialogue.messages[n]["role"] != "system")
    assert kept == [n for n in kept if n < first] + list(range(first, len(dialogue.messages)))
    assert dialogue.messages[first]["role"] == "user"
    sent = "\n".join(map(text_of, made.messages))
    assert all(text_of(dialogue.messages[n]) in sent for n in kept)
    assert all(pin in sent for pin in dialogue.pins)


@COMMON
@given(dialogue=dialogues(), policy=POLICIES.filter(lambda it: it.strategy != "refuse"))
def test_one_more_message_never_brings_an_older_one_back(
    any_counter: TemplateCounter, dialogue: Dialogue, policy: ContextPolicy
) -> None:
    out: set[int] = set()
    for end in range(1, len(dialogue.messages) + 1):
        part = Dialogue(dialogue.messages[:end], dialogue.tools, dialogue.pins, dialogue.max_tokens)
        made = planned_or_refused(part, policy, any_counter)
        if isinstance(made, ApiError):
            continue
        now = {n for n in range(end) if fate(made, n) != "kept"}
        assert out <= now
        out = now


def fate(made: ContextPlan, number: int) -> str:
    return next(part.fate for part in made.parts if part.name == f"messages[{number}]")


def test_a_short_dialogue_is_sent_as_it_is(any_counter: TemplateCounter) -> None:
    messages = [*long_dialogue(2), *tool_turn(1, "Oslo"), user("And now?")]
    made = plan(Dialogue(messages, (WEATHER,)), ContextPolicy(), any_counter)
    assert list(made.messages) == messages
    assert made.header == f"kept=10;dropped=0;tokens={made.tokens};window=4096"
    parts = [part.tokens for part in made.parts]
    # one whole text is encoded at once where the template ends no message
    assert sum(parts) == pytest.approx(made.tokens, abs=2 * len(parts))


def test_the_newest_turns_that_fit_are_kept_whole(counter: TemplateCounter) -> None:
    messages = [*long_dialogue(30), *tool_turn(1, "Oslo"), user("And now?")]
    policy = ContextPolicy(strategy="drop", window_tokens=400, answer_tokens=100)
    made = plan(Dialogue(messages, pins=["Call me Ada."]), policy, counter)
    gone = [part for part in made.parts if part.fate == "dropped"]
    assert made.tokens <= 300 < made.tokens + sum(part.tokens for part in gone[-2:])
    assert made.messages[0]["content"] == "Be brief.\n\nFacts to keep in mind:\n- Call me Ada."
    assert list(made.messages[-5:]) == messages[-5:]
    assert [part.name for part in gone] == [f"messages[{n}]" for n in range(1, 1 + len(gone))]
    assert {part.reason for part in gone} == {
        f"older than turn {len(gone) // 2}, where the window is full"
    }
    shown = made.to_json()
    assert shown["tokens"] == made.tokens
    assert shown["parts"][1] == {
        "part": "pins",
        "tokens": counter.text("\n\nFacts to keep in mind:\n- Call me Ada."),
        "fate": "kept",
        "reason": "pinned facts are always sent",
    }


def test_a_call_is_never_parted_from_its_result(counter: TemplateCounter) -> None:
    messages = [turn for n in range(8) for turn in tool_turn(n, "Oslo")] + [user("And now?")]
    for window in range(250, 900, 50):
        policy = ContextPolicy(strategy="drop", window_tokens=window, answer_tokens=10)
        made = plan(Dialogue(messages), policy, counter)
        calls = [m["tool_calls"][0]["id"] for m in made.messages if m.get("tool_calls")]
        assert calls == [m["tool_call_id"] for m in made.messages if m["role"] == "tool"]


def test_what_must_be_sent_is_refused_with_the_numbers(counter: TemplateCounter) -> None:
    messages = [user("word " * 300)]
    dialogue = Dialogue(messages, (WEATHER,), pins=["Call me Ada."], max_tokens=50)
    with pytest.raises(ApiError) as refused:
        plan(dialogue, ContextPolicy(window_tokens=300), counter)
    words = str(refused.value)
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
    assert f"messages[0], {counter.turn(messages)[0]}), answer 50" in words
    for name in ("system", "pinned facts", "tools", "turns"):
        assert re.search(rf"{name} [1-9]\d*", words), words


def test_the_strategy_refuse_never_drops(counter: TemplateCounter) -> None:
    dialogue = Dialogue([*long_dialogue(30), user("And now?")])
    with pytest.raises(ApiError, match="maximum context length is 400 tokens"):
        plan(dialogue, ContextPolicy(strategy="refuse", window_tokens=400), counter)
    fits = counter.whole(dialogue.messages, ()) + 1
    made = plan(dialogue, ContextPolicy(strategy="refuse", window_tokens=fits), counter)
    assert (made.answer_tokens, made.count("dropped")) == (1, 0)


def test_many_newest_turns_are_kept_even_at_the_cost_of_room(counter: TemplateCounter) -> None:
    messages = long_dialogue(10)
    room = counter.whole(messages[9:], ()) + 60
    policy = ContextPolicy(strategy="drop", window_tokens=room, keep_recent_turns=6)
    made = plan(Dialogue(messages), policy, counter)
    assert made.count("kept") == 13
    assert made.answer_tokens < policy.answer_room(room)


def test_a_summary_of_an_edited_dialogue_is_not_used(counter: TemplateCounter) -> None:
    messages = long_dialogue(30)
    policy = ContextPolicy(window_tokens=400)
    start = outline(Dialogue(messages), policy, counter).start
    old = Summary("key number 0 is 7000", start, digest(messages[1 : 1 + 2 * start]))
    made = plan(Dialogue(messages), policy, counter, old)
    assert made.summary == old
    assert "key number 0 is 7000" in made.messages[0]["content"]
    assert made.count("summarized") == 2 * start
    messages[1] = user("Something else.")
    made = plan(Dialogue(messages), policy, counter, old)
    assert made.summary is None
    assert made.count("dropped") == 2 * start
    assert "7000" not in made.messages[0]["content"]


def test_turns_of_a_stored_summary_stay_out_of_a_larger_window(counter: TemplateCounter) -> None:
    messages = long_dialogue(30)
    old = Summary("key number 0 is 7000", 12, digest(messages[1:25]))
    made = plan(Dialogue(messages), ContextPolicy(window_tokens=4096), counter, old)
    assert made.count("summarized") == 24
    assert list(made.messages[1:]) == messages[25:]
    assert (
        plan(Dialogue(messages), ContextPolicy(strategy="drop"), counter, old).count("kept") == 61
    )


def test_a_summary_that_is_too_long_is_cut_and_told(counter: TemplateCounter) -> None:
    messages = long_dialogue(30)
    policy = ContextPolicy(window_tokens=600, answer_tokens=100, summary_tokens=200)
    start = outline(Dialogue(messages), policy, counter).start
    lines = [f"Line {n} of 1.5 in a summary." for n in range(50)]
    old = Summary(" ".join(lines), start, digest(messages[1 : 1 + 2 * start]))
    made = plan(Dialogue(messages), policy, counter, old)
    assert made.summary is not None
    num = made.summary.text.count("Line")
    assert made.summary.text == " ".join(lines[:num])
    assert f"cut to {num} of 50 sentences" in made.notes[0]
    part = next(part for part in made.parts if part.name == "summary")
    assert 150 < part.tokens <= 200


def test_turns_are_folded_in_one_go_and_then_rest(counter: TemplateCounter) -> None:
    policy = ContextPolicy(window_tokens=900, answer_tokens=100, summary_tokens=180)
    starts = [
        outline(Dialogue(long_dialogue(number)), policy, counter).start for number in range(1, 60)
    ]
    moves = [after - before for before, after in pairwise(starts)]
    assert min(moves) == 0
    assert 4 <= len([move for move in moves if move]) <= 12


def test_a_template_whose_sum_is_too_low_is_caught_by_the_whole(counter: TemplateCounter) -> None:
    class Low(TemplateCounter):
        def turn(self, messages: Any) -> tuple[int, ...]:
            return tuple(n // 2 for n in super().turn(messages))

    low = Low(counter._template, window_tokens=400)
    policy = ContextPolicy(strategy="drop", answer_tokens=100)
    made = plan(Dialogue(long_dialogue(40)), policy, low)
    assert 250 <= made.tokens == counter.whole(made.messages, ()) <= 300


def test_a_summary_gives_way_before_a_request_is_refused(counter: TemplateCounter) -> None:
    class Surprised(TemplateCounter):
        def whole(self, messages: Any, tools: Any) -> int:
            is_prompt = len(messages) > 2 and "Notes on" in text_of(messages[0])
            return super().whole(messages, tools) + 500 * is_prompt

    messages = long_dialogue(30)
    surprised = Surprised(counter._template, window_tokens=600)
    old = Summary("key number 0 is 7000", 20, digest(messages[1:41]))
    assert plan(Dialogue(messages), ContextPolicy(), surprised, old).summary is None
    assert plan(Dialogue(messages), ContextPolicy(window_tokens=600), counter, old).summary == old


def test_estimates_say_that_they_are(counter: TemplateCounter) -> None:
    made = plan(Dialogue(long_dialogue(3)), ContextPolicy(), EstimateCounter(4096))
    assert made.header.endswith("window=4096;estimate=1")
    assert made.to_json()["is_estimate"] is True
    with pytest.raises(ApiError, match=r"set `context.window_tokens`"):
        plan(Dialogue(long_dialogue(3)), ContextPolicy(), EstimateCounter(None))


def test_messages_without_roles_are_refused(counter: TemplateCounter) -> None:
    wrongs: list[Any] = [[], ["hi"], [{"content": "hi"}]]
    for wrong in wrongs:
        with pytest.raises(ApiError, match="messages"):
            plan(Dialogue(wrong), ContextPolicy(), counter)
    with pytest.raises(ApiError, match="unknown role 'friend'"):
        plan(Dialogue([user("hi"), {"role": "friend", "content": "x"}]), ContextPolicy(), counter)


@COMMON
@given(texts=st.lists(TEXTS, min_size=1, max_size=9))
def test_bytes_bound_tokens(any_counter: TemplateCounter, texts: list[str]) -> None:
    messages = [user(text) for text in texts]
    num_bytes = sum(len(text.encode()) for text in texts)
    tokens = any_counter.whole(messages, ())
    assert not is_surely_within(num_bytes, len(texts), 50, tokens + 49)
