"""Multiple choice: layouts, letters in answers, shots."""

import zipfile
from pathlib import Path

import pytest
from tests.evaluate.fakes import Puppet

from dialoop.core.errors import UserError
from dialoop.core.jobfile import parse
from dialoop.evaluate.choices import load_choices
from dialoop.evaluate.spec import EvaluateJob
from dialoop.evaluate.tasks import Material, Reply
from dialoop.evaluate.tasks.choice import ChoiceTask, picked

NOTHING = Material(None, ())
MMLU = '"What is 2 + 2, or\ntwo and two?",3,4,5,6,B\nWhat is 1 + 1?,2,3,4,5,A\n'
CEVAL = "id,question,A,B,C,D,answer\n0,二加二等于几,三,四,五,六,B\n"
CMMLU = ",Question,A,B,C,D,Answer\n0,一加一等于几,二,三,四,五,A\n"
LINES = '{"question": "Sky?", "choices": ["red", "blue", "green"], "answer": 1, "subject": "sky"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "sums_dev.csv").write_text("What is 0 + 0?,0,1,2,3,A\n")
    (tmp_path / "sums_val.csv").write_text(MMLU)
    (tmp_path / "ceval_val.csv").write_text(CEVAL)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "cmmlu.csv").write_text(CMMLU, encoding="gbk")
    (tmp_path / "more.jsonl").write_text(LINES)
    return tmp_path


def test_every_layout_is_read(folder: Path) -> None:
    found = {c.id: c for c in load_choices([str(folder)])}
    assert {(c.subject, c.split, c.answer, len(c.options)) for c in found.values()} == {
        ("sums", "dev", "A", 4),
        ("sums", "val", "B", 4),
        ("sums", "val", "A", 4),
        ("ceval", "val", "B", 4),
        ("cmmlu", "val", "A", 4),
        ("sky", "", "B", 3),
    }
    assert found["sums/val 1"].question == "What is 2 + 2, or\ntwo and two?"
    assert found["ceval/0"].options == ("三", "四", "五", "六")


def test_the_likeliest_letter_is_taken(folder: Path) -> None:
    task = ChoiceTask(files=[str(folder / "sums_val.csv"), str(folder / "more.jsonl")])
    puppet = Puppet(likes=lambda _, words: [float(w == "B") for w in words])
    measured = task.measure(puppet, NOTHING)
    assert measured.scores[0].value == pytest.approx(2 / 3)
    assert measured.scores[1].value == pytest.approx((1 / 2 + 1) / 2), "the mean of subjects"
    assert measured.grids[0].values == ((1.0,), (0.5,))
    assert measured.cases[1].problems == ("takes B, not A",)


def test_no_letter_among_the_likeliest_is_wrong(folder: Path) -> None:
    puppet = Puppet(likes=lambda _, words: [float("-inf")] * len(words))
    measured = ChoiceTask(files=[str(folder / "sums_val.csv")]).measure(puppet, NOTHING)
    assert measured.scores[0].value == 0
    assert measured.cases[0].problems == ("takes no option",)


def test_solved_questions_stand_before_and_dev_is_not_asked(folder: Path) -> None:
    files = [str(folder / "dev"), str(folder / "sums_val.csv")]
    puppet = Puppet(say=lambda _: Reply("The answer is (B)."))
    measured = ChoiceTask(files=files, shots=1, by="generation").measure(puppet, NOTHING)
    assert measured.scores[0].value == 0.5
    roles = [(m.role, m.text[:14]) for m in puppet.asked[0].messages]
    assert roles == [("user", "What is 0 + 0?"), ("assistant", "A"), ("user", "What is 2 + 2,")]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", ""),
        ("(C) because", "C"),
        ("A bird? The answer is D.", "D"),
        ("Answer: A. No, the answer is **B**", "B"),
        ("答案是C。", "C"),
        ("I'm sure", ""),
        ("E", ""),
        ("选B", "B"),
    ],
)
def test_letters_in_answers(text: str, letter: str) -> None:
    assert picked("ABCD", text) == letter


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": ["absent.csv"]}, r"no such file or folder: `absent\.csv`"),
        ({"files": ["sums_val.csv"], "shots": 1}, "`sums` has fewer than 1 solved"),
        ({"files": ["sums_val.csv"], "split": "test"}, r"no split `test` \(there are: val\)"),
        ({"files": ["dev"], "shots": 1}, "are themselves the solved ones"),
        ({"files": ["bad.csv"]}, r"bad\.csv, row 1: no question with options"),
    ],
)
def test_wrong_requests(
    folder: Path, fields: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "bad.csv").write_text("What?,1,2,3,4,Z\n")
    (task,) = parse(EvaluateJob, {"model": "m", "tasks": [{"kind": "choice", **fields}]}).tasks
    with pytest.raises(UserError, match=message):
        task.measure(Puppet(), NOTHING)


def test_the_real_mmlu_archive(shared_data: Path) -> None:
    path = shared_data / "eval" / "mmlu.zip"
    found = load_choices([str(path)])
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".csv")]
    assert {c.split for c in found} == {"dev", "val"}
    assert len({(c.subject, c.split) for c in found}) == len(names)
    assert all(len(c.options) == 4 for c in found)
    assert sum(c.split == "dev" for c in found) == 5 * len([n for n in names if "_dev" in n])
