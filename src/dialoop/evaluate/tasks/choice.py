"""Multiple choice: the letter of the right option, by log-probability or by generation.

Sources: MMLU, Hendrycks et al. 2021, arXiv:2009.03300; C-Eval, Huang et al. 2023, arXiv:2305.08322;
CMMLU, Li et al. 2024, arXiv:2306.09212.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from typing_extensions import override

from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.evaluate.choices import load_choices
from dialoop.evaluate.result import Case, Grid, Measured, Observed, Score
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.message import Message
    from dialoop.evaluate.choices import Choice
    from dialoop.evaluate.tasks import Material, Subject

_ASKS = {
    "en": "{question}\n{options}\nAnswer with the letter of the right option alone.",
    "zh": "{question}\n{options}\n请只回答正确选项的字母。",
}
_STATED = re.compile(
    r"(?:answer|option|choice|答案|选项?|选择)\s*(?:is|是|为)?\s*"
    r"[:：]?\s*[(（*]*([A-J])(?![A-Za-z])",  # noqa: RUF001
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z'])")


class ChoiceTask(Task, frozen=True):
    """The share of questions whose right option is taken."""

    kind: Literal["choice"] = "choice"
    files: list[str] = Field(min_length=1)
    """CSV or JSON Lines files, folders or zip archives in the layout of MMLU, C-Eval or CMMLU."""
    by: Literal["logprob", "generation"] = "logprob"
    """`logprob` takes the likeliest letter; `generation` reads the letter from a written answer."""
    shots: NonNegativeInt = 0
    """Solved questions of the same subject's `dev` split that stand before each; 0 to 5."""
    split: str = ""
    """Split that is asked, such as `val`; without it all but `dev`, or `dev` where there is no
    other."""
    limit: PositiveInt | None = None
    """At most so many questions of each subject, the first ones."""

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Ask every question once."""
        del material
        asked, examples = self._chosen(load_choices(self.files))
        dialogues = [_dialogue(c, examples.get(c.subject, ())[: self.shots]) for c in asked]
        if self.by == "logprob":
            liked = subject.choices(dialogues, [c.letters for c in asked])
            found = [_best(c, logps) for c, logps in zip(asked, liked, strict=True)]
            texts = [letter or "none of them is among the likeliest tokens" for letter in found]
        else:
            texts = subject.answers(dialogues)
            found = [picked(c.letters, text) for c, text in zip(asked, texts, strict=True)]
        cases = [_case(*item) for item in zip(asked, texts, found, strict=True)]
        passes = [Observed(id=c.id, value=float(c.passed is True)) for c in cases]
        by_subject = _means(cases)
        rows = tuple(sorted(by_subject))
        mean = sum(by_subject.values()) / len(rows)
        return Measured(
            task=self.title,
            scores=(
                Score.of("accuracy", passes, best=1),
                Score(name="mean of subjects", value=mean, unit="", better="neither", best=1),
                Score(name="questions", value=len(cases), unit="", better="neither"),
            ),
            cases=tuple(cases),
            grids=(
                Grid(
                    title="accuracy by subject",
                    rows=rows,
                    columns=("accuracy",),
                    values=tuple((by_subject[row],) for row in rows),
                ),
            ),
        )

    def _chosen(self, choices: list[Choice]) -> tuple[list[Choice], dict[str, list[Choice]]]:
        """What is asked, and the solved questions by subject."""
        examples: dict[str, list[Choice]] = {}
        for choice in choices:
            if choice.split == "dev":
                examples.setdefault(choice.subject, []).append(choice)
        split = self.split or ("" if any(c.split != "dev" for c in choices) else "dev")
        asked = [c for c in choices if (c.split == split if split else c.split != "dev")]
        if not asked:
            known = ", ".join(sorted({c.split or "(none)" for c in choices}))
            raise UserError(f"task choice: no split `{split}` (there are: {known})")
        if self.shots and split == "dev":
            raise UserError(
                "task choice: the questions asked are themselves the solved ones",
                hint="ask another `split`, or use `shots: 0`",
            )
        lacking = [c.subject for c in asked if len(examples.get(c.subject, ())) < self.shots]
        if lacking:
            raise UserError(
                f"task choice: subject `{lacking[0]}` has fewer than {self.shots} solved questions",
                hint="give its `dev` file, or lower `shots`",
            )
        seen: dict[str, int] = {}
        kept: list[Choice] = []
        for choice in asked:
            seen[choice.subject] = seen.get(choice.subject, 0) + 1
            if self.limit is None or seen[choice.subject] <= self.limit:
                kept.append(choice)
        return kept, examples


def picked(letters: str, text: str) -> str:
    """The letter that a written answer takes; empty when it takes none.

    The last one that is called the answer; else the first that stands alone.
    """
    stated = [m[1].upper() for m in _STATED.finditer(text)]
    alone = _ALONE.findall(text)
    found = [letter for letter in (*reversed(stated), *alone) if letter in letters]
    return found[0] if found else ""


def _dialogue(choice: Choice, examples: Sequence[Choice]) -> list[Message]:
    solved = [
        turn
        for e in examples
        for turn in (message("user", _ask(e)), message("assistant", e.answer))
    ]
    return [*solved, message("user", _ask(choice))]


def _ask(choice: Choice) -> str:
    pairs = zip(choice.letters, choice.options, strict=True)
    options = "\n".join(f"{letter}. {option}" for letter, option in pairs)
    language = "zh" if re.search(r"[\u4e00-\u9fff]", choice.question) else "en"
    return _ASKS[language].format(question=choice.question, options=options)


def _best(choice: Choice, logps: list[float]) -> str:
    top = max(logps)
    return "" if top == float("-inf") else choice.letters[logps.index(top)]


def _case(choice: Choice, text: str, letter: str) -> Case:
    passed = letter == choice.answer
    problem = f"takes {letter}, not {choice.answer}" if letter else "takes no option"
    return Case(
        id=choice.id,
        question=_ask(choice),
        answer=text,
        reference=choice.answer,
        passed=passed,
        problems=() if passed else (problem,),
        group=choice.subject,
    )


def _means(cases: list[Case]) -> dict[str, float]:
    groups: dict[str, list[bool]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case.passed is True)
    return {name: sum(passed) / len(passed) for name, passed in groups.items()}
