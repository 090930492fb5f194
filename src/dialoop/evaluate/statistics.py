"""How sure a score is: intervals, and paired tests between two checkpoints on the same questions.

Sources: the percentile bootstrap, Efron and Tibshirani 1993, section 13.3; the interval of a share,
Wilson 1927, equation of the limits; McNemar 1947, with the exact binomial; the paired randomisation
test, Fisher 1935, section 21, exact up to 2^12 sign patterns, else drawn.

Shares of passes have Wilson's interval, because no resample of twelve passes ever fails. What is
tested is by randomisation, because the bootstrap of two pairs that agree in sign is always sure.

Q is the questions, R the resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Form = Literal["mean", "sum", "exp"]
"""How a score comes from its questions: weighted mean, sum, or e to the power of the mean."""

SEED = 20250707
RESAMPLES = 2000
EXACT_PAIRS = 12
Z_95 = 1.959963984540054
"""The standard normal's 0.975 quantile."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The second checkpoint's score less the first's, on the questions that both have."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval, by the paired bootstrap."""
    p: float
    """Chance of so large a difference, either way, if the two were alike."""
    test: Literal["McNemar", "paired randomisation"]
    pairs: int


def estimate(values: Array, weights: Array, form: Form) -> float:
    """The score of some questions.

    Args:
        values: (Q,) what each adds.
        weights: (Q,) how much each counts; not all 0.
        form: how the score comes from them.
    """
    return float(_estimates(values[None], weights[None], form)[0])


def interval(values: Array, weights: Array, form: Form) -> tuple[float, float] | None:
    """The ends of the 95 % interval of a score; None where one question says nothing of it."""
    if len(values) < 2:
        return None
    if _is_pass_or_fail(values, weights):
        low, high = wilson(int(values.sum()), len(values))
        times = len(values) if form == "sum" else 1
        return low * times, high * times
    return _percentiles(
        resampled(lambda at: _estimates(values[at], weights[at], form), len(values))
    )


def wilson(passed: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    share, z2 = passed / total, Z_95**2 / total
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(before: tuple[Array, Array], after: tuple[Array, Array], form: Form) -> Difference:
    """Compare two checkpoints on the same questions, in the same order.

    Args:
        before: (Q,) values and (Q,) weights of the first.
        after: the same of the second.
        form: how the score comes from them.
    """
    value = estimate(*after, form) - estimate(*before, form)
    num = len(before[0])

    def differences(at: NDArray[np.int64]) -> Array:
        new = _estimates(after[0][at], after[1][at], form)
        return new - _estimates(before[0][at], before[1][at], form)

    low, high = _percentiles(resampled(differences, num))
    if _is_pass_or_fail(*before) and _is_pass_or_fail(*after):
        gained = int(((after[0] == 1) & (before[0] == 0)).sum())
        lost = int(((after[0] == 0) & (before[0] == 1)).sum())
        return Difference(value, low, high, mcnemar(gained, lost), "McNemar", num)
    return Difference(
        value, low, high, _randomised(before, after, form), "paired randomisation", num
    )


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided exact p of questions that only one of two checkpoints passes."""
    total = gained + lost
    tail = sum(math.comb(total, n) for n in range(min(gained, lost) + 1)) / 2**total
    return min(1.0, 2 * tail)


def resampled(measure: Callable[[NDArray[np.int64]], Array], num: int) -> Array:
    """(R,) a measure of questions drawn with replacement.

    Args:
        measure: of (r, Q) places of questions, (r,) numbers.
        num: how many questions there are.
    """
    random = np.random.default_rng(SEED)
    parts = max(1, RESAMPLES * num // 2**22)
    sizes = [len(part) for part in np.array_split(np.arange(RESAMPLES), parts)]
    return np.concatenate([measure(random.integers(0, num, (size, num))) for size in sizes])


def _randomised(before: tuple[Array, Array], after: tuple[Array, Array], form: Form) -> float:
    """Share of the ways to swap the two checkpoints, pair by pair, that differ at least as much."""
    num = len(before[0])
    if num <= EXACT_PAIRS:
        swaps = (np.arange(2**num)[:, None] >> np.arange(num)) & 1 == 1  # (2^Q, Q)
    else:
        swaps = np.random.default_rng(SEED).random((RESAMPLES, num)) < 0.5
        swaps[0] = False  # the one that was seen counts, so that p is never 0
    first = [np.where(swaps, b, a) for a, b in zip(before, after, strict=True)]
    second = [np.where(swaps, a, b) for a, b in zip(before, after, strict=True)]
    found = _estimates(second[0], second[1], form) - _estimates(first[0], first[1], form)
    seen = abs(estimate(*after, form) - estimate(*before, form))
    return float(np.mean(np.abs(found) >= seen * (1 - 1e-12)))


def _estimates(values: Array, weights: Array, form: Form) -> Array:
    """(R,) scores of (R, Q) values and weights."""
    if form == "sum":
        return values.sum(1)
    means = values.sum(1) / weights.sum(1)
    return np.exp(means) if form == "exp" else means


def _is_pass_or_fail(values: Array, weights: Array) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all() and (weights == 1).all())


def _percentiles(found: Array) -> tuple[float, float]:
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
