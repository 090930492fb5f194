"""Ranking metrics against scikit-learn and counting by hand."""

import numpy as np
import pytest

from dialoop.evaluate.ranking import mrr, ndcg, recall


@pytest.mark.parametrize("places", [1, 3, 10, 50])
def test_ndcg_is_that_of_scikit_learn(places: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores = random.standard_normal((20, 12))
    gains = random.integers(0, 4, (20, 12)).astype(float)
    expected = metrics.ndcg_score(gains, scores, k=places)
    assert ndcg(scores, gains, places) == pytest.approx(expected, rel=1e-12)


def test_a_small_case_by_hand() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    gains = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    first = (1 / np.log2(3)) / (1 + 1 / np.log2(3))
    assert ndcg(scores, gains, 3) == pytest.approx(first / 2)
    assert mrr(scores, gains, 3) == pytest.approx((1 / 2 + 0) / 2)
    assert mrr(scores, gains, 4) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert recall(scores, gains, 3) == pytest.approx((1 / 2 + 0) / 2)


def test_equal_scores_and_queries_without_relevant_passages_gain_nothing() -> None:
    alike, gains = np.zeros((1, 5)), np.array([[1.0, 0.0, 0.0, 0.0, 0.0]])
    assert mrr(alike, gains, 5) == pytest.approx(1 / 5)
    nothing = np.zeros((1, 5))
    assert ndcg(alike, nothing, 5) == mrr(alike, nothing, 5) == recall(alike, nothing, 5) == 0
