"""Intervals and tests against scipy and formulas."""

import numpy as np
import pytest

from dialoop.evaluate import statistics
from dialoop.evaluate.statistics import difference, estimate, interval, mcnemar, wilson


def sample(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.gamma(2.0, 10.0, num), random.integers(1, 20, num).astype(float)


def test_scores_are_weighted_means_sums_and_their_exponential() -> None:
    values, weights = np.array([2.0, 4.0]), np.array([1.0, 2.0])
    assert estimate(values, weights, "mean") == 2
    assert estimate(values, weights, "sum") == 6
    assert estimate(values, weights, "exp") == pytest.approx(np.e**2)


@pytest.mark.parametrize(("passed", "total"), [(0, 7), (5, 12), (12, 12), (300, 400)])
def test_wilson_is_that_of_scipy(passed: int, total: int) -> None:
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.binomtest(passed, total).proportion_ci(method="wilson")
    assert wilson(passed, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    z2 = statistics.Z_95**2
    assert wilson(4, 4) == pytest.approx((4 / (4 + z2), 1.0))


def test_shares_and_counts_of_passes_have_an_interval_that_is_never_empty() -> None:
    passes = np.ones(12)
    low, high = interval(passes, passes, "sum") or (0, 0)
    assert (low, high) == pytest.approx((12 * 12 / (12 + statistics.Z_95**2), 12))
    assert interval(np.ones(1), np.ones(1), "mean") is None


def test_the_bootstrap_of_a_mean_is_near_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    values, _ = sample(60)
    found = interval(values, np.ones(60), "mean")
    expected = scipy.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=1
    ).confidence_interval
    # 2000 draws put a percentile of the means within some 0.15 of a standard error
    room = 0.15 * values.std() / np.sqrt(60)
    assert found == pytest.approx((expected.low, expected.high), abs=room)
    assert found == interval(values, np.ones(60), "mean"), "the same seed, the same interval"


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (9, 1), (6, 6), (3, 14)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.binomtest(gained, gained + lost).pvalue if gained + lost else 1
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)


@pytest.mark.parametrize("num", [7, 12])
def test_the_randomised_test_of_a_few_pairs_is_exact(num: int) -> None:
    scipy = pytest.importorskip("scipy.stats")
    before, after = sample(num, 1)[0], sample(num, 2)[0] + 6
    ones = np.ones(num)
    found = difference((before, ones), (after, ones), "mean")
    expected = scipy.permutation_test(
        (after, before), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=10**5
    )
    assert found.value == pytest.approx(np.mean(after - before))
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)


def test_the_randomised_test_of_many_pairs_is_near_the_t_test() -> None:
    scipy = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(4)
    before = random.normal(0, 1, 200)
    after = before + random.normal(0.08, 0.5, 200)
    found = difference((before, np.ones(200)), (after, np.ones(200)), "mean")
    expected = scipy.ttest_rel(after, before).pvalue
    assert 0.001 < expected < 0.5
    assert found.p == pytest.approx(expected, abs=0.03)  # 2000 draws
    low, high = scipy.ttest_rel(after, before).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_two_pairs_are_never_sure() -> None:
    ones = np.ones(2)
    found = difference((np.array([3.0, 3.5]), ones), (np.array([1.0, 1.2]), ones), "mean")
    assert found.p == 0.5


def test_passes_are_compared_by_the_questions_that_changed() -> None:
    before, after = np.zeros(10), np.array([1.0] * 6 + [0.0] * 4)
    found = difference((before, np.ones(10)), (after, np.ones(10)), "sum")
    assert (found.value, found.test, found.p) == (6, "McNemar", pytest.approx(2 / 2**6))


def test_alike_checkpoints_do_not_differ() -> None:
    one = sample(30)
    found = difference(one, one, "exp")
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
