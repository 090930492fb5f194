"""Questions with known facts: does each answer contain what it must."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.evaluate.result import Case, Measured, Observed, Score
from dialoop.evaluate.suite import problems
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from dialoop.evaluate.suite import Question
    from dialoop.evaluate.tasks import Material, Subject


class Suite(Task, frozen=True):
    """The share of the suite's questions whose answer passes its checks."""

    kind: Literal["suite"] = "suite"

    runs_unasked: ClassVar = True

    @override
    def lacks(self, material: Material) -> str | None:
        """A suite."""
        return None if material.questions else "suite"

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Ask every question once and check its answer."""
        questions = material.questions
        texts = subject.answers([question.dialogue() for question in questions])
        cases = tuple(_case(q, text) for q, text in zip(questions, texts, strict=True))
        passes = [Observed(id=case.id, value=float(case.passed is True)) for case in cases]
        return Measured(
            task=self.title,
            scores=(
                Score.of("checks passed", passes, unit="questions", best=len(cases), form="sum"),
                Score(name="checks", value=len(cases), unit="questions", better="neither"),
            ),
            cases=cases,
        )


def _case(question: Question, answer: str) -> Case:
    asked = question.dialogue()[-1].text
    wrong = problems(question, answer)
    return Case(id=question.id, question=asked, answer=answer, passed=not wrong, problems=wrong)
