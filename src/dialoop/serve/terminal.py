"""`dialoop chat`: a dialogue in the terminal; Ctrl-C stops the answer, not the program."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from dialoop.chat.message import Message, message
from dialoop.core.errors import UserError
from dialoop.core.schema import Result
from dialoop.engines import Request, Sampling
from dialoop.engines.text import stream
from dialoop.serve.model import open_model

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from dialoop.chat.template import Template
    from dialoop.core.events import Event
    from dialoop.engines import Engine
    from dialoop.serve.spec import ChatJob

PROMPT = "> "
HELP = """\
/system TEXT   set the system message and begin anew; without TEXT: show it
/reset         forget the dialogue
/help          this list
/exit          leave (also Ctrl-D)
Ctrl-C stops an answer."""


class ChatResult(Result, frozen=True):
    """What was said."""

    turns: int
    """Questions that were answered, wholly or in part."""

    def text(self) -> str:
        """Nothing more to say."""
        return ""


def run(
    job: ChatJob,
    emit: Callable[[Event], None],
    read: Callable[[str], str],
    write: Callable[[str], object],
) -> ChatResult:
    """Talk until `/exit` or the end of the input.

    Args:
        job: model and sampling.
        emit: receives progress while the model loads.
        read: gives a line for a prompt; raises EOFError at the end of the input.
        write: shows text as it comes.
    """
    with asyncio.Runner() as runner:
        model = runner.run(open_model(job.model, job, emit))
        try:
            dialogue = Dialogue(model.engine, model.template, job)
            write(f"{model.name} on {model.engine.info.engine}. /help lists commands.\n")
            turns = _talk(dialogue, runner, read, write)
        finally:
            runner.run(model.engine.stop())
    return ChatResult(turns=turns)


def _talk(
    dialogue: Dialogue,
    runner: asyncio.Runner,
    read: Callable[[str], str],
    write: Callable[[str], object],
) -> int:
    turns = 0
    while True:
        try:
            line = read(PROMPT).strip()
            if line in {"/exit", "/quit"}:
                return turns
            if line.startswith("/"):
                write(dialogue.command(line) + "\n")
            elif line:
                turns += _ask(dialogue, line, runner, write)
        except EOFError:
            return turns
        except KeyboardInterrupt:  # at the prompt, or between an answer and the next prompt
            write("\n(/exit or Ctrl-D leaves)\n")


def _ask(
    dialogue: Dialogue, line: str, runner: asyncio.Runner, write: Callable[[str], object]
) -> bool:
    async def show() -> None:
        async with aclosing(dialogue.ask(line)) as pieces:
            async for text in pieces:
                write(text)

    try:
        runner.run(show())
    except KeyboardInterrupt:
        write(" [stopped]")
    except UserError as error:
        write(f"{error}\n")
        return False
    write("\n")
    return True


class Dialogue:
    """What has been said, and what a model says next.

    Args:
        engine: started.
        template: of the same checkpoint.
        job: sampling, and the system message to begin with.
    """

    def __init__(self, engine: Engine, template: Template, job: ChatJob) -> None:
        self._engine, self._template, self._job = engine, template, job
        self._system = job.system
        self.messages: list[Message] = []
        """Without the system message; an answer that was stopped is kept as far as it was shown."""

    def command(self, line: str) -> str:
        """Obey a line that begins with a slash; what to show for it."""
        name, _, rest = line.partition(" ")
        if name == "/help":
            return HELP
        if name == "/reset":
            self.messages.clear()
            return "(forgotten)"
        if name == "/system":
            return self._set_system(rest.strip())
        return f"no command `{name}`; /help lists them"

    async def ask(self, text: str) -> AsyncGenerator[str, None]:
        """Pieces of the answer to one more question.

        Raises:
            UserError: the dialogue has no room left; the question is then forgotten.
        """
        self.messages.append(message("user", text))
        shown = ""
        try:
            request = self._request()
            pieces = stream(self._engine, self._template.tokenizer, request)
            async with aclosing(pieces):
                async for piece in pieces:
                    shown += piece.text
                    yield piece.text
        finally:
            if shown:
                self.messages.append(message("assistant", shown))
            else:
                self.messages.pop()

    def _set_system(self, text: str) -> str:
        if not text:
            return self._system or "(no system message)"
        self._system = text
        self.messages.clear()
        return "(system message set)"

    def _request(self) -> Request:
        system = [message("system", self._system)] if self._system else []
        ids = self._template.prompt_ids([*system, *self.messages])
        room = self._engine.info.max_length - len(ids)
        if room < 1:
            raise UserError(
                f"the dialogue is {len(ids)} tokens long, and the model reads "
                f"{self._engine.info.max_length}",
                hint="begin anew with /reset",
            )
        sampling = Sampling(
            max_tokens=min(self._job.max_new_tokens, room),
            temperature=self._job.temperature,
            top_p=self._job.top_p,
        )
        return Request(tuple(ids), sampling, self._template.stop_ids)
