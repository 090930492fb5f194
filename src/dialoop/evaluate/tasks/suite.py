"""Questions with known facts: does each answer contain what it must."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from dialoop.evaluate.result import Case, Measured, Score
from dialoop.evaluate.suite import problems
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from dialoop.evaluate.suite import Question
    from dialoop.evaluate.tasks import Material, Subject


class Suite(Task, frozen=True):
    """The share of the suite's questions whose answer passes its checks."""

    kind: Literal["suite"] = "suite"

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
        passed = sum(case.passed is True for case in cases)
        return Measured(
            task=self.kind,
            scores=(
                Score(
                    name="checks passed",
                    value=passed,
                    unit="questions",
                    better="higher",
                    best=len(cases),
                ),
                Score(name="checks", value=len(cases), unit="questions", better="neither"),
            ),
            cases=cases,
        )


def _case(question: Question, answer: str) -> Case:
    asked = question.dialogue()[-1].text
    wrong = problems(question, answer)
    return Case(id=question.id, question=asked, answer=answer, passed=not wrong, problems=wrong)
