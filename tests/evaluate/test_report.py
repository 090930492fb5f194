"""Results side by side, and the reports made of them."""

import json
import re

import pytest

from dialoop.evaluate import report
from dialoop.evaluate.result import (
    Case,
    Checkpoint,
    EvaluateResult,
    Grid,
    Measured,
    Observed,
    PastRun,
    Score,
    case_rows,
    compared,
    score_rows,
)

NASTY = '<script>alert("x")</script> | ```\n{{ 1 + 1 }}'


def checkpoint(name: str, loss: float, answer: str, *, passed: bool) -> Checkpoint:
    scores = (
        Score(name="loss", value=loss, unit="nats per target token", better="lower"),
        Score(name="target tokens", value=1200, unit="", better="neither"),
    )
    case = Case(
        id="warranty",
        question=NASTY,
        answer=answer,
        passed=passed,
        problems=() if passed else ("lacks `five`",),
    )
    measured = (Measured(task="loss", scores=scores), Measured(task="suite", cases=(case,)))
    return Checkpoint(name=name, tokenizer="t", measured=measured)


def result(*, alone: bool = False) -> EvaluateResult:
    return EvaluateResult(
        loss=1.5,
        perplexity=4.48,
        checks_passed=1,
        checks_total=1,
        compare_loss=3.0,
        compare_perplexity=20.1,
        compare_checks_passed=0,
        model=checkpoint("tuned", 1.5, "five years", passed=True),
        compare=None if alone else checkpoint("base", 3.0, NASTY, passed=False),
        notes=("mind the tokenizers",),
    )


def test_scores_stand_side_by_side() -> None:
    loss, tokens = score_rows(result())
    assert loss.values == ("3", "1.5")
    assert [bar.share for bar in loss.bars] == [1.0, 0.5]
    assert loss.change == "-50.0 % (cannot tell)", "nothing says how sure it is"
    assert tokens.change == ""
    assert (loss.is_judged, tokens.is_judged) == (True, False)
    assert score_rows(result(alone=True))[0].values == ("1.5",)


def test_cases_stand_side_by_side() -> None:
    (row,) = case_rows(result(), "suite")
    assert [case.answer for case in row.answers] == [NASTY, "five years"]


def test_html_is_self_contained_and_escapes_what_others_wrote() -> None:
    page = report.html(result())
    assert not re.search(r"https?://|//cdn|<script|@import|url\(", page)
    assert "&lt;script&gt;" in page
    assert "{{ 1 + 1 }}" in page
    assert "width:50.0%" in page
    assert '<p class="soft">target tokens 1200</p>' in page, "a count is no bar"
    assert "prefers-color-scheme: dark" in page
    assert "mind the tokenizers" in page


def test_markdown_keeps_tables_and_fences_whole() -> None:
    page = report.markdown(result())
    assert "| loss | 3 | 1.5 | nats per target token | -50.0 % (cannot tell) |" in page
    assert f"````text\n{NASTY}\n````" in page
    assert "**tuned** (pass)" in page
    assert "- lacks `five`" in page


def test_the_terminal_shows_the_change_without_colour() -> None:
    from rich.console import Console

    console = Console(width=100, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(result().text())
    assert "-50.0 % (cannot tell)" in captured.get()


def test_json_holds_every_field() -> None:
    data = json.loads(result().model_dump_json())
    assert data["loss"] == 1.5
    assert data["compare"]["measured"][1]["cases"][0]["passed"] is False


def test_long_paths_have_short_names_where_those_differ() -> None:
    def named(before: str, after: str) -> tuple[str, ...]:
        made = result()
        assert made.compare
        compare = made.compare.model_copy(update={"name": before})
        model = made.model.model_copy(update={"name": after})
        return made.model_copy(update={"compare": compare, "model": model}).labels

    assert named("/a/base", "/b/tuned") == ("base", "tuned")
    assert named("/a/x", "/b/x") == ("/a/x", "/b/x")


def measured(name: str, losses: list[float], passes: list[int]) -> Checkpoint:
    rows = [Observed(id=f"row {n}", value=loss, weight=2.0) for n, loss in enumerate(losses)]
    checks = [Observed(id=f"q{n}", value=passed) for n, passed in enumerate(passes)]
    scores = (Score.of("loss", rows, better="lower"), Score.of("right", checks))
    grid = Grid(title="by length", rows=("0 %",), columns=("1k", "2k"), values=((1.0, None),))
    return Checkpoint(
        name=name, tokenizer="t", measured=(Measured(task="loss", scores=scores, grids=(grid,)),)
    )


def test_differences_have_verdicts_and_are_drawn() -> None:
    before = measured("base", [4.0 + n / 10 for n in range(8)], [0, 1, 0, 0])
    after = measured("tuned", [2.0 + n / 10 for n in range(8)], [1, 1, 0, 0])
    loss, right = compared(after, before)
    assert (loss.difference, loss.verdict) == (pytest.approx(-1), "better")
    assert loss.p == pytest.approx(2 / 2**8)
    assert (right.difference, right.verdict, right.p) == (0.25, "cannot tell", 1)
    other_way = compared(before, after)
    assert other_way[0].verdict == "worse"
    past = PastRun(name="runs/1", made="2026-01-01T00:00:00+00:00", scores={"loss: loss": 3.0})
    update = {"model": after, "compare": before, "comparisons": (loss, right), "history": (past,)}
    whole = result().model_copy(update=update)
    assert "-46.0 % (better, p = 0.0078)" in score_rows(whole)[0].change
    page, text = report.html(whole), report.markdown(whole)
    assert 'class="whisker"' in page
    assert "paired randomisation, p = 0.0078, 8 pairs: better" in page
    assert '<polyline points="0.0,0.0 100.0,40.0"/>' in page
    assert "<th>2k</th>" in page
    assert "| loss: right | +0.25 | [0, 0.75] | 1 | McNemar | 4 | cannot tell |" in text
    assert "| runs/1 (2026-01-01T00:00:00+00:00) | 3 |" in text
    assert "| 0 % | 1.00 | - |" in text


def test_scores_of_one_name_are_told_apart() -> None:
    one = measured("a", [1.0, 2.0], [0, 1])
    twice = (one.measured[0], one.measured[0].model_copy(update={"task": "again"}))
    whole = result(alone=True).model_copy(
        update={"model": one.model_copy(update={"measured": twice})}
    )
    names = [row.name for row in score_rows(whole)]
    assert names == ["loss: loss", "loss: right", "again: loss", "again: right"]


def test_only_questions_that_both_answered_are_compared() -> None:
    before, after = measured("a", [1.0, 2.0], [0, 1, 1]), measured("b", [1.0, 2.0], [0])
    assert [c.pairs for c in compared(after, before)] == [2, 1]
