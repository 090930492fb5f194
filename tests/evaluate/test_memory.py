"""Recall over turns and needles in haystacks, on subjects that remember or do not."""

import json
import re
from pathlib import Path

import pytest
from tests.evaluate.fakes import Puppet

from dialoop.core.errors import UserError
from dialoop.evaluate.tasks import Material, Prompt, Reply
from dialoop.evaluate.tasks.haystack import Haystack
from dialoop.evaluate.tasks.recall import Recall
from dialoop.evaluate.words import holds

NOTHING = Material(None, ())


@pytest.mark.parametrize(
    ("answer", "texts", "held"),
    [
        ("You are 35.", ["35"], True),
        ("You are 350.", ["35"], False),
        ("You are THIRTY five", ["35", "thirty five"], True),
        ("您今年３５岁", ["35"], True),
        ("我叫王小明", ["小明"], True),
    ],
)
def test_words(answer: str, texts: list[str], held: bool) -> None:
    assert holds(answer, texts) is held


def forgetful(prompt: Prompt) -> Reply:
    """Knows what was said in the last two turns of the user."""
    said = [m.text for m in prompt.messages if m.role == "user"]
    return Reply(" ".join(said[-3:-1]))


def test_recall_by_distance(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    fact = {"turns": ["I am Ann.", "Nice day.", "Indeed."], "question": "Who?", "answers": ["Ann"]}
    path.write_text(json.dumps(fact) + "\n")
    puppet = Puppet(say=forgetful)
    measured = Recall(files=[str(path)], distances=[0, 1, 2, 3]).measure(puppet, NOTHING)
    assert measured.grids[0].values == ((1.0, 1.0, 0.0, None),), "no fact has 3 turns after it"
    assert measured.scores[0].value == pytest.approx(2 / 3)
    roles = [m.role for m in puppet.asked[1].messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    with pytest.raises(UserError, match="no fact has more than 3 turns"):
        Recall(files=[str(path)], distances=[3]).measure(puppet, NOTHING)


def test_the_real_memory_questions(shared_data: Path) -> None:
    path = shared_data / "eval" / "bfcl_memory" / "BFCL_v4_memory.json"
    puppet = Puppet(say=lambda p: Reply(" ".join(m.text for m in p.messages[:-1])))
    measured = Recall(files=[str(path)], distances=[0, 3]).measure(puppet, NOTHING)
    assert len(measured.cases) >= 150
    told = [c for c in measured.cases if c.group == "0"]
    assert sum(c.passed is True for c in told) / len(told) > 0.8, "the turn holds the fact"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_needles_are_hidden_where_they_should_be(language: str) -> None:
    def half(prompt: Prompt) -> Reply:
        """Reads the first half of the text alone."""
        text = prompt.messages[-1].text
        return Reply(" ".join(re.findall(r"\d{6}", text[: len(text) // 2])))

    puppet = Puppet(say=half)
    task = Haystack(lengths=[200, 400], depths=[0, 25, 75, 100], language=language)  # pyright: ignore[reportArgumentType]
    measured = task.measure(puppet, NOTHING)
    assert measured.grids[0].values == ((1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0))
    assert measured.scores[0].value == 0.5
    sizes = [len(prompt.messages[0].text) / 4 for prompt in puppet.asked]
    assert sizes[0] == pytest.approx(200, rel=0.25)
    assert sizes[-1] == pytest.approx(400, rel=0.15)
    again = task.measure(Puppet(say=half), NOTHING)
    assert again == measured, "the seed decides the numbers"


def test_a_haystack_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text("First line here.\n\nSecond line here.\n")
    puppet = Puppet()
    Haystack(lengths=[64], depths=[50], text=tmp_path / "hay.txt").measure(puppet, NOTHING)
    assert "First line here.\nSecond line here." in puppet.asked[0].messages[0].text
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        Haystack(text=tmp_path / "absent.txt").measure(puppet, NOTHING)
