"""Summaries: key facts, what a model is asked, failures, and what is remembered."""

# ruff: noqa: RUF001  full-width signs are Chinese punctuation

import asyncio
from typing import Any

import pytest
from tests.gateway.context.dialogues import assistant, long_dialogue, user

from dialoop.gateway.context.exact import TemplateCounter
from dialoop.gateway.context.facts import concepts, key_facts, shortened
from dialoop.gateway.context.manage import ContextManager
from dialoop.gateway.context.outline import Dialogue
from dialoop.gateway.context.policy import ContextPolicy
from dialoop.gateway.context.summarize import AskModel, Fold, prompt
from dialoop.gateway.context.turns import text_of
from dialoop.gateway.context.wording import CHINESE, ENGLISH, wording_of
from dialoop.serve.failure import ApiError

POLICY = ContextPolicy(window_tokens=900, answer_tokens=100, summary_tokens=180)


def words(text: str) -> int:
    """Tokens, for tests: words, and Chinese signs."""
    return len(text.split()) + sum("\u4e00" <= sign <= "\u9fff" for sign in text)


def test_key_facts_prefer_facts_and_the_user() -> None:
    messages = [
        user("Hello there! My name is Ada Byron, and I live in Turin."),
        assistant("Nice to meet you! Is there anything that I can help you with today?"),
        user("My order is A-7731, I paid 49.99 for it."),
        assistant("Thank you, I will see what I can do about it for you, please wait."),
        user("My order is A-7731, I paid 49.99 for it."),
    ]
    text = key_facts(messages, 17, words)
    assert words(text) <= 17
    for fact in ("Ada Byron", "Turin", "A-7731", "49.99"):
        assert text.count(fact) == 1, text
    assert "assistant" not in text
    assert key_facts(messages, 17, words) == text


def test_key_facts_of_chinese() -> None:
    messages = [
        user("你好，我叫李雪，我最近去了厦门。"),
        assistant("很高兴认识你，有什么可以帮助你的吗？"),
        user("我喜欢《怦然心动》，还有川菜、粤菜。"),
    ]
    text = key_facts(messages, 34, words)
    for fact in ("李雪", "厦门", "《怦然心动》", "川菜、粤菜"):
        assert fact in text
    assert text.startswith("用户: ")
    assert "帮助" not in text


def test_key_facts_of_nothing_are_nothing() -> None:
    assert key_facts([], 10, words) == ""
    assert key_facts([user("one two three four Zanzibar five")], 1, words) == ""


def test_negations_stay_and_titles_stay_whole() -> None:
    assert shortened("I really do not like the comedies") == "not like comedies"
    assert shortened('and so I saw "To Be or Not" there') == 'saw "To Be or Not"'
    assert concepts("I went to Turin")["turin"] > concepts("I went to turin")["turin"]
    assert concepts("information")["information"] < concepts("stalactite")["stalactite"]


def test_wording_follows_the_text() -> None:
    assert wording_of("你好 OK") is CHINESE
    assert wording_of("hello 你好 to all of you out there") is ENGLISH
    assert "李雪" in prompt("", ["用户: 我叫李雪"], 100)[0]["content"]
    asked = prompt("Ada lives in Turin", ["user: I moved to Rome"], 160)[0]["content"]
    assert "at most 100 words" in asked
    assert asked.index("Ada lives in Turin") < asked.index("user: I moved to Rome")
    assert "(none)" in prompt("", ["user: hi"], 100)[0]["content"]


def test_a_model_is_asked_in_portions_with_its_own_notes() -> None:
    asked: list[str] = []

    async def ask(messages: list[Any], max_tokens: int) -> str:
        asked.append(messages[0]["content"])
        assert max_tokens == 50
        return f"notes {len(asked)}"

    messages = [user(f"fact{number} " * 12) for number in range(6)]
    fold = Fold(messages, 2, "the old notes", 50, words)
    made = asyncio.run(AskModel(ask, prompt_tokens=30).summarize(fold))
    assert made == f"notes {len(asked)}" == "notes 2"
    assert "the old notes" in asked[0]
    assert "notes 1" in asked[1]
    assert "fact1" not in "".join(asked)
    assert all("".join(asked).count(f"fact{number} ") >= 11 for number in range(2, 6))
    long = Fold([user("zzz " * 100)], 0, "", 50, words)
    asked.clear()
    asyncio.run(AskModel(ask, prompt_tokens=30).summarize(long))
    assert len(asked) == 4
    assert sum(text.count("z") for text in asked) == 300


def test_an_empty_answer_is_no_summary() -> None:
    async def ask(messages: list[Any], max_tokens: int) -> str:
        return " "

    with pytest.raises(ValueError, match="empty summary"):
        asyncio.run(AskModel(ask).summarize(Fold([user("hi")], 0, "", 50, words)))


class Recorded:
    """A summariser that keeps what it is given."""

    def __init__(self, text: str = "", error: Exception | None = None) -> None:
        self.folds: list[Fold] = []
        self.text = text
        self.error = error

    async def summarize(self, fold: Fold) -> str:
        self.folds.append(fold)
        if self.error:
            raise self.error
        return self.text or f"notes on {len(fold.messages)} messages"


def test_a_stored_summary_is_gone_on_with(counter: TemplateCounter) -> None:
    summarizer = Recorded()
    manager = ContextManager(POLICY, counter, summarizer)
    summary = None
    texts: list[str] = []
    for number in range(1, 50):
        made = asyncio.run(manager.plan(Dialogue(long_dialogue(number)), summary))
        summary = made.summary
        texts.append(summary.text if summary else "")
    assert 2 <= len(summarizer.folds) == len(set(texts) - {""}) <= 12
    first, second = summarizer.folds[:2]
    assert (first.num_old, first.old) == (0, "")
    assert second.num_old == len(first.messages)
    assert second.old == f"notes on {len(first.messages)} messages"
    assert "7000" in text_of(first.messages[0])


def test_dialogues_without_a_store_are_summarised_once(counter: TemplateCounter) -> None:
    summarizer = Recorded()
    manager = ContextManager(POLICY, counter, summarizer)
    messages = long_dialogue(40)
    plans = [asyncio.run(manager.plan(Dialogue(messages))) for _ in range(3)]
    assert len(summarizer.folds) == 1
    assert plans[0] == plans[2]
    assert plans[0].count("summarized") > 0


@pytest.mark.parametrize(
    "error", [ApiError(503, "no engine"), TimeoutError("late"), ValueError("empty")]
)
def test_a_summary_that_fails_costs_no_answer(counter: TemplateCounter, error: Exception) -> None:
    messages = long_dialogue(40)
    short = ContextManager(POLICY, counter, Recorded("the key number 0 is 7000"))
    old = asyncio.run(short.plan(Dialogue(messages[:61]))).summary
    assert old is not None
    made = asyncio.run(
        ContextManager(POLICY, counter, Recorded(error=error)).plan(Dialogue(messages), old)
    )
    assert made.summary == old
    assert made.count("summarized") == 2 * old.num_turns
    assert made.count("dropped") > 0
    assert f"the summary failed ({type(error).__name__}: {error})" in made.notes
    reasons = {part.reason for part in made.parts if part.fate == "dropped"}
    assert all("there is no summary of it" in reason for reason in reasons)


def test_a_summariser_that_hangs_is_not_waited_for(counter: TemplateCounter) -> None:
    class Hung:
        async def summarize(self, fold: Fold) -> str:
            await asyncio.sleep(60)
            return ""

    manager = ContextManager(POLICY, counter, Hung(), timeout_s=0.05)
    made = asyncio.run(manager.plan(Dialogue(long_dialogue(40))))
    assert made.summary is None
    assert "TimeoutError" in made.notes[0]


def test_facts_beyond_the_window_survive(counter: TemplateCounter) -> None:
    """Written by hand: what a shop's customer told long ago still stands in the prompt."""
    facts = ["Ada Byron", "A-7731", "Turin", "allergic nickel", "March 14", "Lamp Nova"]
    told = [
        user("Hello, my name is Ada Byron."),
        assistant("Good morning! How can I help you today?"),
        user("I ordered the Lamp Nova, the order number is A-7731."),
        assistant("Thank you, I can see your order here."),
        user("Please send it to my new address in Turin, I moved there on March 14."),
        assistant("I have changed the address of your order."),
        user("One more thing: I am allergic to nickel, so I want the switch in plastic."),
        assistant("That is no problem, I wrote it down for the workshop."),
    ]
    chat: list[Any] = []
    for number in range(20):
        chat += [user(f"And how are you today, number {number}?"), assistant("I am fine, thanks!")]
    manager = ContextManager(ContextPolicy(window_tokens=800), counter)
    made = asyncio.run(
        manager.plan(Dialogue([*told, *chat, user("Do you remember me?")], pins=["VIP customer"]))
    )
    assert made.count("summarized") > 8
    sent = "\n".join(map(text_of, made.messages))
    assert [fact for fact in facts if fact not in sent] == []
    assert "VIP customer" in sent
    assert sent.endswith("Do you remember me?")
