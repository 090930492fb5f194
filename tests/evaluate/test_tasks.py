"""Tasks, on a subject that says what it is told to say."""

import math
from collections.abc import Iterator

import pytest
from tests.evaluate.fakes import Puppet

from dialoop.chat.message import message
from dialoop.core.jobfile import parse
from dialoop.data.sample import Sample
from dialoop.evaluate.spec import EvaluateJob
from dialoop.evaluate.suite import Question
from dialoop.evaluate.tasks import Material
from dialoop.evaluate.tasks.answers import Answers
from dialoop.evaluate.tasks.loss import Loss
from dialoop.evaluate.tasks.suite import Suite


class Samples(list[Sample]):
    digest = "d"

    def __iter__(self) -> Iterator[Sample]:
        return super().__iter__()


DIALOGUE = Sample(
    (
        message("system", "s"),
        message("user", "hello"),
        message("assistant", "hi"),
        message("user", "lamps?"),
        message("assistant", "yes"),
    )
)
QUESTIONS = (
    Question(id="a", question="red", must_contain=("red",)),
    Question(id="b", question="red", must_contain=("blue",)),
)
NOTHING = Material(None, ())


def material() -> Material:
    return Material(Samples([Sample(text="plain"), DIALOGUE, DIALOGUE]), QUESTIONS)  # pyright: ignore[reportArgumentType]


def test_loss_is_nats_over_targets() -> None:
    scores = {s.name: s.value for s in Loss().measure(Puppet(), material()).scores}
    assert scores["loss"] == 1.5
    assert scores["perplexity"] == pytest.approx(math.exp(1.5))
    assert scores["records left out"] == 1


def test_answers_ask_the_last_user_turn() -> None:
    (case,) = Answers(count=1).measure(Puppet(), material()).cases
    assert case.question == "user: hello\nassistant: hi\nuser: lamps?"
    assert (case.answer, case.reference, case.passed) == ("lamps?", "yes", None)


def test_suite_counts_what_passes() -> None:
    measured = Suite().measure(Puppet(), material())
    assert [case.passed for case in measured.cases] == [True, False]
    assert (measured.scores[0].value, measured.scores[0].best) == (1, 2)


@pytest.mark.parametrize(
    ("task", "field"), [(Loss(), "dataset"), (Answers(), "dataset"), (Suite(), "suite")]
)
def test_a_task_names_what_it_lacks(task: Loss | Answers | Suite, field: str) -> None:
    assert task.lacks(NOTHING) == field
    assert task.lacks(material()) is None


def test_a_task_may_be_written_by_name_or_whole() -> None:
    job = parse(EvaluateJob, {"model": "m", "tasks": ["loss", {"kind": "answers", "count": 3}]})
    assert job.tasks == [Loss(), Answers(count=3)]
    assert parse(EvaluateJob, {"model": "m", "tasks": "suite"}).tasks == [Suite()]
