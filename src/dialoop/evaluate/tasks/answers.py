"""The checkpoint's own answers to held-out dialogues, beside the answers that people wrote."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.evaluate.result import Case, Measured
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from dialoop.chat.message import Message
    from dialoop.evaluate.tasks import Material, Subject


class Answers(Task, frozen=True):
    """Answers to read side by side; nothing is scored."""

    kind: Literal["answers"] = "answers"
    count: int = Field(default=8, ge=1)
    """How many dialogues are answered, the first of the held-out ones; 5 to 50 is usual."""

    runs_unasked: ClassVar = True

    @override
    def lacks(self, material: Material) -> str | None:
        """A data set."""
        return None if material.samples is not None else "dataset"

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Answer the last user turn of each dialogue."""
        dialogues = (s.messages for s in material.samples or () if s.kind == "dialogue")
        chosen = list(islice(dialogues, self.count))
        texts = subject.answers([turns[:-1] for turns in chosen])
        cases = [
            Case(
                id=f"held-out {number}",
                question=_transcript(turns[:-1]),
                answer=text,
                reference=turns[-1].text,
            )
            for number, (turns, text) in enumerate(zip(chosen, texts, strict=True), 1)
        ]
        return Measured(task=self.title, cases=tuple(cases))


def _transcript(turns: tuple[Message, ...]) -> str:
    """The user's question, after the turns before it where there are any."""
    spoken = [turn for turn in turns if turn.role != "system"]
    if len(spoken) == 1:
        return spoken[0].text
    return "\n".join(f"{turn.role}: {turn.text}" for turn in spoken)
