"""Loading: mixing, splitting, the cache, the catalog, and the errors of a request."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import Convert

from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Event, Note, ignore
from dialoop.data import catalog, mix
from dialoop.data.load import load
from dialoop.data.run import InspectResult, inspect, list_datasets
from dialoop.data.spec import DataSpec, InspectJob, ListJob


@pytest.fixture
def twenty(tmp_path: Path) -> str:
    path = tmp_path / "twenty.jsonl"
    rows = [{"query": f"question {n}", "response": f"answer {n}"} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def questions(spec: DataSpec) -> tuple[list[str], list[str]]:
    loaded = load(spec, ignore)
    return (
        [s.messages[0].text for s in loaded.train],
        [s.messages[0].text for s in loaded.validation],
    )


def test_all_rows_in_order_and_by_number(twenty: str) -> None:
    loaded = load(DataSpec(dataset=[twenty]), ignore)
    assert [s.messages[1].text for s in loaded.train] == [f"answer {n}" for n in range(20)]
    assert loaded.train[7].messages[0].text == "question 7"
    origin = loaded.train[7].origin
    assert origin is not None
    assert (origin.file, origin.line) == (twenty, 8)
    assert len(loaded.validation) == 0


def test_a_number_behind_a_name_samples_and_repeats(twenty: str) -> None:
    some, _ = questions(DataSpec(dataset=[f"{twenty}#5"]))
    assert len(set(some)) == 5
    assert some == questions(DataSpec(dataset=[f"{twenty}#5"]))[0]
    assert some != questions(DataSpec(dataset=[f"{twenty}#5"], seed=1))[0]
    many, _ = questions(DataSpec(dataset=[f"{twenty}#50"]))
    counts = [many.count(f"question {n}") for n in range(20)]
    assert sorted(set(counts)) == [2, 3]
    assert len(many) == 50
    with pytest.raises(UserError, match="asks for 0 rows"):
        questions(DataSpec(dataset=[f"{twenty}#0"]))


def test_weights_are_shares_of_the_mix(twenty: str, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"query": "x", "response": "y"}\n' * 20, encoding="utf-8")
    train, _ = questions(DataSpec(dataset=[twenty, str(other)], weights=[3, 1]))
    assert (len(train), train.count("x")) == (40, 10)
    with pytest.raises(UserError, match="1 for 2 data sets"):
        questions(DataSpec(dataset=[twenty, str(other)], weights=[1]))


def test_whole_dialogues_are_held_out(twenty: str) -> None:
    train, held = questions(DataSpec(dataset=[twenty], validation=0.2))
    assert (len(train), len(held)) == (16, 4)
    assert not set(train) & set(held)
    repeated, held = questions(DataSpec(dataset=[f"{twenty}#60"], validation=0.2))
    assert not set(repeated) & set(held)
    train, held = questions(DataSpec(dataset=[twenty], validation=[f"{twenty}"]))
    assert len(train) == len(held) == 20
    with pytest.raises(UserError, match=r"validation: 0\.9"):
        questions(DataSpec(dataset=[twenty], validation=0.9))


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_groups_together(seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 30, 200)
    held = mix.split(keys, 0.25, seed)
    assert not set(keys[held]) & set(keys[~held])
    assert 0.15 < held.mean() < 0.45
    assert not mix.split(np.zeros(5, np.int64), 0.5, 0).any()


def test_the_second_time_comes_from_the_cache_until_the_file_changes(twenty: str) -> None:
    def notes() -> list[str]:
        seen: list[Event] = []
        digests.append(load(DataSpec(dataset=[twenty]), seen.append).train.digest)
        return [event.text for event in seen if isinstance(event, Note)]

    digests: list[str] = []
    assert notes() == []
    assert notes() == ["data: read before, taken from the cache"]
    text = Path(twenty).read_text(encoding="utf-8").replace("answer 3", "changed")
    Path(twenty).write_text(text + " ", encoding="utf-8")
    assert notes() == []
    assert digests[0] == digests[1] != digests[2]


def test_pictures_are_found_beside_their_file(tmp_path: Path, to_canonical: Convert) -> None:
    (tmp_path / "p.jpg").write_bytes(b"x")
    path = tmp_path / "a.json"
    path.write_text('[{"query": "<image>?", "response": "a", "images": ["p.jpg"]}]', "utf-8")
    assert str(tmp_path / "p.jpg") in to_canonical(path).output.read_text("utf-8")


def test_wrong_requests_say_what_to_do(twenty: str, tmp_path: Path, to_canonical: Convert) -> None:
    for spec, words in [
        ({"dataset": ["nowhere.json"]}, "no such file, folder or known data set: `nowhere.json`"),
        ({"dataset": [twenty], "columns": {"colour": "query"}}, "has a column `colour`"),
        ({"dataset": [twenty], "columns": {"query": "colour"}}, "no layout knows a field `colour`"),
        ({"dataset": ["alpaca-em"]}, "did you mean `alpaca-en`"),
    ]:
        with pytest.raises(UserError) as caught:
            load(DataSpec.model_validate(spec), ignore)
        assert words in str(caught.value)
        assert caught.value.hint
    useless = tmp_path / "useless.jsonl"
    useless.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match="gives no usable row") as nothing:
        to_canonical(useless)
    assert f"dialoop data inspect {useless}" in str(nothing.value.hint)
    rejected = (tmp_path / "out.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rejected[1]) == {
        "file": str(useless), "line": 2, "reason": "no known layout: columns a",
        "excerpt": '{"a": 2}',
    }  # fmt: skip
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_cannot_be_written(
    twenty: str, tmp_path: Path, to_canonical: Convert
) -> None:
    with pytest.raises(UserError, match="is a folder"):
        to_canonical(twenty, output=tmp_path)
    with pytest.raises(UserError, match="is a file, not a folder"):
        to_canonical(twenty, output=f"{twenty}/out.jsonl")
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(MachineError, match="no permission"):
        to_canonical(twenty, output=closed / "out.jsonl")


def test_a_hub_offline_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_OFFLINE", "1")
    for name in ("alpaca-en", "hf::some/set", "ms::some/set"):
        with pytest.raises(MachineError, match="work offline"):
            load(DataSpec(dataset=[name]), ignore)


def test_the_catalog_knows_thirty_sets_by_one_name_each() -> None:
    names = [n for e in catalog.ENTRIES for n in (e.name, *e.aliases)]
    assert len(catalog.ENTRIES) >= 30
    assert len(set(names)) == len(names)
    assert all(e.hf or e.ms for e in catalog.ENTRIES)
    entry = catalog.find("Alpaca_EN")
    assert entry is not None
    assert entry.name == "alpaca-en"
    chosen = list_datasets(ListJob(language="zh", task="preference"), ignore).datasets
    assert [d["name"] for d in chosen] == ["dpo-zh-en"]


def test_inspect_counts_without_a_model_and_when_nothing_is_usable(
    twenty: str, tmp_path: Path
) -> None:
    result = inspect(InspectJob(paths=[twenty]), ignore)
    assert isinstance(result, InspectResult)
    assert (result.samples, result.tokens, result.report.layouts) == (20, None, {"query": 20})
    useless = tmp_path / "useless.jsonl"
    useless.write_text('{"a": 1}\n', encoding="utf-8")
    report = inspect(InspectJob(paths=[str(useless)]), ignore).report
    assert report.rejected == 1
    assert "--columns THEIR_NAME=query" in report.lines()[-1]
    assert not any("--columns" in line for line in result.report.lines())
