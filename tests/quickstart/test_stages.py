"""Stages that are done once, and the clock that tells downloads from work."""

import time
from pathlib import Path

import pytest

from dialoop.core.events import Event, Note, Stage, ignore
from dialoop.core.schema import Result
from dialoop.quickstart.stages import Clock, Stages


class Made(Result, frozen=True):
    """What a stage makes."""

    number: int


def make(number: int, calls: list[int]):
    def inner(folder: Path) -> Made:
        calls.append(number)
        folder.mkdir(parents=True)
        return Made(number=number)

    return inner


def test_a_stage_is_done_once_for_the_same_inputs(tmp_path: Path) -> None:
    calls: list[int] = []
    first = Stages(tmp_path, Clock(ignore))
    place, made = first.once("tuned", {"lr": 1}, Made, make(1, calls))
    assert first.reused == []
    assert list(first.seconds) == ["tuned"]

    events: list[Event] = []
    second = Stages(tmp_path, Clock(events.append))
    assert second.once("tuned", {"lr": 1}, Made, make(2, calls)) == (place, made)
    assert second.reused == ["tuned"]
    assert isinstance(events[0], Note)
    assert calls == [1]


def test_other_inputs_make_another_folder(tmp_path: Path) -> None:
    calls: list[int] = []
    stages = Stages(tmp_path, Clock(ignore))
    one, _ = stages.once("tuned", {"lr": 1}, Made, make(1, calls))
    two, _ = stages.once("tuned", {"lr": 2}, Made, make(2, calls))
    assert one != two
    assert calls == [1, 2]


def test_an_interrupted_stage_is_not_taken_for_done(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> Made:
        folder.mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, Clock(ignore)).once("tuned", {}, Made, interrupted)
    again = Stages(tmp_path, Clock(ignore))
    _, made = again.once("tuned", {}, Made, lambda folder: Made(number=3))
    assert made.number == 3
    assert again.reused == []


def test_a_result_whose_folder_is_gone_is_made_again(tmp_path: Path) -> None:
    calls: list[int] = []
    place, _ = Stages(tmp_path, Clock(ignore)).once("merged", {}, Made, make(1, calls))
    place.rmdir()
    Stages(tmp_path, Clock(ignore)).once("merged", {}, Made, make(2, calls))
    assert calls == [1, 2]


def test_downloads_are_not_work() -> None:
    clock = Clock(ignore)
    clock(Stage("download a wheel"))
    time.sleep(0.05)
    clock(Stage("convert"))
    time.sleep(0.02)
    assert clock.downloads_s >= 0.05
    assert clock.work_s >= 0.02
    before = clock.downloads_s
    time.sleep(0.02)
    assert clock.downloads_s == before
