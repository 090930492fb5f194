"""The chat in the terminal, with its reader and writer given."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.fake import FakeEngine

from dialoop.chat.message import message
from dialoop.chat.template import Template
from dialoop.core.errors import UserError
from dialoop.core.events import ignore
from dialoop.serve.spec import ChatJob
from dialoop.serve.terminal import HELP, Dialogue, run

JOB = ChatJob(model="m")
ANSWER = "您的订单明天送达。"


def dialogue(template: Template, **engine: Any) -> tuple[Dialogue, FakeEngine]:
    fake = FakeEngine(template.tokenizer.encode(ANSWER), **engine)
    return Dialogue(fake, template, JOB), fake


def ask(talk: Dialogue, text: str) -> str:
    async def work() -> str:
        return "".join([piece async for piece in talk.ask(text)])

    return asyncio.run(work())


def test_the_whole_dialogue_is_what_the_model_sees(template: Template) -> None:
    talk, fake = dialogue(template)
    assert talk.command("/system Be short.") == "(system message set)"
    assert ask(talk, "我的订单在哪里") == ANSWER
    assert ask(talk, "谢谢") == ANSWER
    turns = [message("system", "Be short."), message("user", "我的订单在哪里")]
    turns += [message("assistant", ANSWER), message("user", "谢谢")]
    assert fake.requests[-1].prompt_ids == tuple(template.prompt_ids(turns))
    assert fake.requests[-1].sampling.temperature == 0.7


def test_commands(template: Template) -> None:
    talk, fake = dialogue(template)
    assert talk.command("/help") == HELP
    assert talk.command("/system") == "(no system message)"
    ask(talk, "How?")
    assert talk.command("/reset") == "(forgotten)"
    ask(talk, "Where?")
    expected = template.prompt_ids([message("user", "Where?")])
    assert fake.requests[-1].prompt_ids == tuple(expected)
    assert talk.command("/nope") == "no command `/nope`; /help lists them"


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_was_shown(template: Template) -> None:
    talk, fake = dialogue(template)

    async def first_piece() -> str:
        pieces = talk.ask("How?")
        text = await anext(pieces)
        await pieces.aclose()
        return text

    shown = asyncio.run(first_piece())
    assert shown
    assert talk.messages == [message("user", "How?"), message("assistant", shown)]
    assert fake.num_aborted == 1


def test_a_dialogue_without_room_forgets_the_question_only(template: Template) -> None:
    talk, _ = dialogue(template, max_length=40)
    ask(talk, "How?")
    before = list(talk.messages)
    with pytest.raises(UserError, match="tokens long, and the model reads 40"):
        ask(talk, "x " * 60)
    assert talk.messages == before


def test_a_talk_from_greeting_to_exit(checkpoint: Path) -> None:
    lines = iter(["How?", "", "/help", "/exit"])
    shown: list[str] = []
    job = ChatJob(
        model=str(checkpoint), engine="transformers", device="cpu", threads=1, max_new_tokens=8
    )
    result = run(job, ignore, lambda _: next(lines), shown.append)
    assert result.turns == 1
    assert shown[0] == "tiny-model on transformers. /help lists commands.\n"
    assert HELP + "\n" in shown


@pytest.fixture
def python_s_own_ctrl_c() -> Iterator[None]:
    """What a program started in a terminal has; a test runner in the background may differ."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@pytest.mark.usefixtures("python_s_own_ctrl_c")
def test_ctrl_c_stops_the_answer_and_not_the_program(checkpoint: Path) -> None:
    shown: list[str] = []
    asked: list[str] = []

    def end_of_input() -> str:
        raise EOFError

    def interrupt() -> str:
        raise KeyboardInterrupt

    steps = [lambda: "How?", interrupt, lambda: "Where?", end_of_input]

    def read(prompt: str) -> str:
        asked.append(prompt)
        return steps[len(asked) - 1]()

    def write(text: str) -> None:
        shown.append(text)
        if len(asked) == 1 and len(shown) == 2:  # the first piece of the first answer
            os.kill(os.getpid(), signal.SIGINT)

    job = ChatJob(
        model=str(checkpoint),
        engine="transformers",
        device="cpu",
        threads=1,
        max_new_tokens=400,
        temperature=0.0,  # a random model's sample may be empty: nothing to stop
    )
    result = run(job, ignore, read, write)
    assert " [stopped]" in shown
    assert "\n(/exit or Ctrl-D leaves)\n" in shown
    assert result.turns == 2
    assert asked == ["> "] * 4
