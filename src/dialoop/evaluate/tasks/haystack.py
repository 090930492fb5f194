"""Needle in a haystack: is a fact found in a long text, by the text's length and the fact's depth.

Source: Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack. The haystack is made of
sentences of our own, or is the user's text; every cell hides another number.
"""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path  # noqa: TC003  pydantic reads the annotation
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.evaluate.result import Case, Grid, Measured, Observed, Score
from dialoop.evaluate.tasks import Task
from dialoop.evaluate.words import holds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dialoop.evaluate.tasks import Material, Subject

_NAMES = ("baker", "ferryman", "gardener", "teacher", "smith", "painter", "miller", "weaver")
_DEEDS = ("opens the shop", "walks to the river", "mends the fence", "reads the paper")
_TIMES = ("at dawn", "before noon", "after lunch", "in the evening", "on market days")
_PLACES = ("by the old bridge", "near the mill", "behind the church", "at the harbour")
_ZH = (
    ["面包师", "船夫", "园丁", "教师", "铁匠", "画家"],
    ["清晨", "中午前", "午后", "傍晚", "集市日"],
    ["在古桥边", "在磨坊旁", "在港口"],
    ["打开店门", "走到河边", "修理篱笆", "读报纸"],
)
_NEEDLES = {
    "en": ("The code of the blue cabinet is {number}.", "What is the code of the blue cabinet?"),
    "zh": (
        "蓝色柜子的密码是{number}。",
        "蓝色柜子的密码是多少？",  # noqa: RUF001
    ),
}


class Haystack(Task, frozen=True):
    """The share of hidden numbers that are found."""

    kind: Literal["haystack"] = "haystack"
    lengths: list[PositiveInt] = Field(default=[512, 1024, 2048], min_length=1)
    """Lengths of the text in tokens; question and answer come on top."""
    depths: list[Annotated[float, Field(ge=0, le=100)]] = Field(
        default=[0, 25, 50, 75, 100], min_length=1
    )
    """Where the fact stands, in per cent of the text."""
    repeats: PositiveInt = 1
    """Texts of each length and depth, with other numbers."""
    text: Path | None = None
    """A text file of your own for the haystack, one sentence or paragraph a line."""
    language: Literal["en", "zh"] = "en"
    """Language of the fact, the question and the sentences of our own."""
    seed: int = 0
    """Of the numbers and the order of the sentences."""

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Hide and ask for a number in every cell."""
        del material
        drawn = random.Random(self.seed)  # noqa: S311  no secret
        cells = [
            (length, depth, number)
            for length in self.lengths
            for depth in self.depths
            for number in range(self.repeats)
        ]
        numbers = [str(drawn.randrange(100_000, 1_000_000)) for _ in cells]
        hays = {n: self._hay(n, drawn, subject) for n in self.lengths}
        needle, question = _NEEDLES[self.language]
        prompts = [
            [
                message(
                    "user", f"{_hidden(hays[length], needle.format(number=n), depth)}\n\n{question}"
                )
            ]
            for (length, depth, _), n in zip(cells, numbers, strict=True)
        ]
        texts = subject.answers(prompts)
        cases = tuple(
            Case(
                id=f"{length} tokens, {depth:g} %, {number + 1}",
                question=f"{needle.format(number=n)} {question}",
                answer=text,
                reference=n,
                passed=holds(text, [n]),
                problems=() if holds(text, [n]) else (f"lacks `{n}`",),
                group=f"{length}/{depth:g}",
            )
            for (length, depth, number), n, text in zip(cells, numbers, texts, strict=True)
        )
        passes = [Observed(id=case.id, value=float(case.passed is True)) for case in cases]
        return Measured(
            task=self.title,
            scores=(Score.of("needles found", passes, best=1),),
            cases=cases,
            grids=(self._grid(cases),),
        )

    def _grid(self, cases: tuple[Case, ...]) -> Grid:
        def share(length: int, depth: float) -> float:
            found = [c.passed is True for c in cases if c.group == f"{length}/{depth:g}"]
            return sum(found) / len(found)

        return Grid(
            title="needles found, by depth and tokens",
            rows=tuple(f"{depth:g} %" for depth in self.depths),
            columns=tuple(map(str, self.lengths)),
            values=tuple(tuple(share(n, depth) for n in self.lengths) for depth in self.depths),
        )

    def _hay(self, length: int, drawn: random.Random, subject: Subject) -> list[str]:
        """Sentences that come to about this many tokens: as many as their mean length allows."""
        lines = self._sentences(drawn)
        sample = [next(lines) for _ in range(32)]
        each = subject.num_tokens("\n".join(sample)) / len(sample)
        wanted = max(1, round(length / each))
        return [*sample, *(next(lines) for _ in range(wanted - len(sample)))][:wanted]

    def _sentences(self, drawn: random.Random) -> Iterator[str]:
        if self.text is None:
            yield from _own(self.language, drawn)
        try:
            lines = self.text.read_text(encoding="utf-8").splitlines() if self.text else []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"task haystack: cannot read `{self.text}`: {error}", hint="give a UTF-8 text file"
            ) from error
        filled = [line.strip() for line in lines if line.strip()]
        if not filled:
            raise UserError(f"task haystack: `{self.text}` holds no text")
        for n in count():
            yield filled[n % len(filled)]


def _own(language: str, drawn: random.Random) -> Iterator[str]:
    while True:
        if language == "zh":
            yield "".join(drawn.choice(words) for words in _ZH) + "。"
        else:
            who, deed = drawn.choice(_NAMES), drawn.choice(_DEEDS)
            yield f"The {who} {deed} {drawn.choice(_PLACES)} {drawn.choice(_TIMES)}."


def _hidden(hay: list[str], needle: str, depth: float) -> str:
    at = round(len(hay) * depth / 100)
    return "\n".join([*hay[:at], needle, *hay[at:]])
