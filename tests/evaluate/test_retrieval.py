"""Retrieval on a corpus of one's own."""

from pathlib import Path

import numpy as np
import pytest
from tests.evaluate.fakes import Puppet

from dialoop.core.errors import UserError
from dialoop.evaluate.tasks import Material
from dialoop.evaluate.tasks.retrieval import RetrievalTask

NOTHING = Material(None, ())


def test_passages_are_ranked_by_cosine(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        '{"id": "p1", "text": "aaab"}\n{"id": "p2", "text": "cc"}\n{"id": "p3", "text": "ab"}\n'
    )
    (tmp_path / "q.jsonl").write_text(
        '{"query": "aaa", "positive": ["p1"]}\n{"query": "a", "positive": "p3"}\n'
    )
    task = RetrievalTask(
        files=[str(tmp_path / "q.jsonl")], corpus=[str(tmp_path / "corpus.jsonl")], places=2
    )
    measured = task.measure(Puppet(), NOTHING)
    values = {s.name: s.value for s in measured.scores}
    # the first query finds p1 first; the second finds p3 behind p1
    assert values["nDCG@2"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert values["MRR@2"] == pytest.approx((1 + 1 / 2) / 2)
    assert values["recall@2"] == 1
    assert values["passages"] == 3
    assert [case.passed for case in measured.cases] == [True, False]
    (tmp_path / "q.jsonl").write_text('{"query": "aaa", "positive": ["p9"]}\n')
    with pytest.raises(UserError, match="the corpus lacks `p9`, which answers `aaa`"):
        task.measure(Puppet(), NOTHING)


def test_the_passages_of_all_queries_are_the_corpus() -> None:
    path = Path(__file__).parents[2] / "examples" / "company" / "search.jsonl"
    measured = RetrievalTask(files=[str(path)]).measure(Puppet(), NOTHING)
    values = {s.name: s.value for s in measured.scores}
    assert values["queries"] == len(path.read_text().splitlines())
    assert 0 < values["MRR@10"] < 1
