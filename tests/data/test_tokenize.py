"""Samples to rows: the same in one process and in many, cached, every drop with its reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import CHATML, write_tiny_tokenizer

from dialoop.chat.message import message
from dialoop.chat.template import Template
from dialoop.core.errors import UserError
from dialoop.core.events import Event, Note, Progress, ignore
from dialoop.data.sample import Origin, Sample
from dialoop.data.tokenize import FEW, Dropped, Row, TokenRows, shortened, tokenize


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return Template.from_folder(folder)


def _dialogue(line: int, answer: str = "Tomorrow.") -> Sample:
    turns = (message("user", f"Where is order {line}?"), message("assistant", answer))
    return Sample(messages=turns, origin=Origin("a.jsonl", line))


def _tokenize(
    samples: list[Sample], template: Template, cache: Path, emit: Any = ignore, **changes: Any
) -> TokenRows:
    settings = {"max_length": 200, "overlong": "drop", "workers": 1, "digest": "x"}
    return tokenize(samples, template, cache=cache, emit=emit, **(settings | changes))


def test_rows_are_those_of_the_template(template: Template, tmp_path: Path) -> None:
    samples = [_dialogue(1), Sample(text="plain words"), _dialogue(3, "Today.")]
    rows = _tokenize(samples, template, tmp_path)
    expected = [
        *template.train_rows(samples[0].messages),
        template.text_row("plain words"),
        *template.train_rows(samples[2].messages),
    ]
    assert len(rows) == 3
    for number, row in enumerate(expected):
        got = rows.row(number)
        np.testing.assert_array_equal(got.ids, row.ids)
        np.testing.assert_array_equal(got.weights, row.weights)
        assert rows.lengths[number] == len(row) == len(got)
    assert rows.num_tokens == sum(len(row) for row in expected)
    assert rows.num_targets == sum(int((row.weights > 0).sum()) for row in expected)
    assert rows.dropped == []
    with pytest.raises(ValueError, match="read-only"):
        rows.row(0).ids[0] = 1


def test_many_processes_give_what_one_gives(template: Template, tmp_path: Path) -> None:
    samples = [_dialogue(line, "yes " * (line % 60)) for line in range(FEW + 300)]
    seen: list[Event] = []
    one = _tokenize(samples, template, tmp_path / "one", max_length=60)
    two = _tokenize(samples, template, tmp_path / "two", seen.append, max_length=60, workers=2)
    files = ("ids.i32", "weights.f32", "starts.i64", "rows.json")
    (a,) = (tmp_path / "one").iterdir()
    (b,) = (tmp_path / "two").iterdir()
    assert [(a / f).read_bytes() for f in files] == [(b / f).read_bytes() for f in files]
    done = [event.done for event in seen if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == len(samples)
    assert 0 < len(one.dropped) == two.counts.dropped < len(samples)


def test_the_second_time_comes_from_the_cache(template: Template, tmp_path: Path) -> None:
    samples = [_dialogue(1), _dialogue(2)]
    first = _tokenize(samples, template, tmp_path)
    (folder,) = tmp_path.iterdir()
    stamp = (folder / "ids.i32").stat().st_mtime_ns
    seen: list[Event] = []
    again = _tokenize(samples, template, tmp_path, seen.append)
    assert (folder / "ids.i32").stat().st_mtime_ns == stamp
    assert seen == [Progress("tokenise", 2, 2, "rows", "from the cache")]
    assert again.row(1).ids.tolist() == first.row(1).ids.tolist()
    for change in ({"digest": "y"}, {"max_length": 100}, {"overlong": "split"}):
        _tokenize(samples, template, tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 4


def test_every_dropped_sample_keeps_its_place_and_reason(
    template: Template, tmp_path: Path
) -> None:
    silent = (message("user", "a"), message("assistant", "b", weight=0.0))
    samples = [
        _dialogue(1),
        Sample(messages=(message("user", "a"),), origin=Origin("b.csv", 7)),
        Sample(messages=silent, origin=Origin("b.csv", 8)),
        _dialogue(4, "long " * 300),
        Sample(text="", origin=Origin("c.txt", 1)),
    ]
    seen: list[Event] = []
    rows = _tokenize(samples, template, tmp_path, seen.append)
    assert rows.dropped == [
        Dropped(Origin("b.csv", 7), "a prompt record cannot be trained on as text"),
        Dropped(Origin("b.csv", 8), "no assistant message with a loss weight above zero"),
        Dropped(Origin("a.jsonl", 4), "longer than 200 tokens"),
        Dropped(Origin("c.txt", 1), "the text is empty"),
    ]
    assert rows.counts.samples == len(rows) + len(rows.dropped) == 5
    notes = [event for event in seen if isinstance(event, Note)]
    assert [note.level for note in notes] == ["warning"] * 4
    assert any("dropped 1 of 5 samples: longer than 200" in note.text for note in notes)


def test_long_rows_are_cut_off(template: Template, tmp_path: Path) -> None:
    samples = [_dialogue(1, "long " * 300), _dialogue(2)]
    seen: list[Event] = []
    rows = _tokenize(samples, template, tmp_path, seen.append, overlong="truncate")
    (whole,) = template.train_rows(samples[0].messages)
    assert rows.row(0).ids.tolist() == whole.ids[:200].tolist()
    assert rows.counts.truncated == 1
    assert seen[-1] == Note("cut 1 rows off at 200 tokens", "warning")


def test_a_cut_that_leaves_no_answer_drops_the_sample(template: Template, tmp_path: Path) -> None:
    late = (message("user", "words " * 300), message("assistant", "b"))
    samples = [Sample(messages=late), _dialogue(2)]
    rows = _tokenize(samples, template, tmp_path, overlong="truncate")
    assert rows.dropped == [Dropped(None, "no answer within its first 200 tokens")]


def test_long_rows_are_split_and_lose_no_token(template: Template, tmp_path: Path) -> None:
    samples = [Sample(text="many words " * 300)]
    rows = _tokenize(samples, template, tmp_path, overlong="split")
    whole = template.text_row("many words " * 300)
    assert rows.counts.split == 1
    assert len(rows) == -(-len(whole) // 200)
    joined = [n for number in range(len(rows)) for n in rows.row(number).ids.tolist()]
    assert joined == whole.ids.tolist()
    assert rows.num_targets == len(whole) - len(rows)


def test_a_long_row_can_be_an_error(template: Template, tmp_path: Path) -> None:
    samples = [_dialogue(1), _dialogue(2, "long " * 300)]
    with pytest.raises(UserError, match=r"a.jsonl:2: \d+ tokens, more than max_length 200"):
        _tokenize(samples, template, tmp_path, overlong="error")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_worker_process_arrives_whole(template: Template, tmp_path: Path) -> None:
    samples = [_dialogue(line) for line in range(FEW + 1)]
    with pytest.raises(UserError, match="more than max_length 9") as caught:
        _tokenize(samples, template, tmp_path, overlong="error", max_length=9, workers=2)
    assert caught.value.hint


def test_data_that_trains_nothing_is_refused(template: Template, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no samples to tokenise"):
        _tokenize([], template, tmp_path)
    with pytest.raises(UserError, match=r"none of the 2 samples .* 2 because: longer than 5"):
        _tokenize([_dialogue(1), _dialogue(2)], template, tmp_path, max_length=5)
    assert list(tmp_path.iterdir()) == []


def test_a_framed_text_keeps_its_end_when_it_is_cut() -> None:
    ids = np.arange(10, dtype=np.int32)
    row = Row(ids, np.zeros(10, np.float32), second=4, tail=2)
    cut = shortened(row, 7)
    assert cut.ids.tolist() == [0, 1, 2, 3, 4, 8, 9]
    assert (cut.second, cut.tail) == (4, 2)
    assert shortened(row, 10) is row
