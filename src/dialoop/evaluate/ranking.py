"""How good rankings are: nDCG, MRR and recall of the first places.

Source: nDCG, Jarvelin and Kekalainen 2002, eq. 2 to 4, with the gain and the discount 1 / log2(1 +
place), as scikit-learn and TREC have it; MRR, Voorhees 1999.

Q is the queries, P the passages that each is ranked with. Passages with equal scores are put in the
order that is worst for the model, so that scoring everything alike gains nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ndcg(scores: NDArray[np.floating], gains: NDArray[np.floating], places: int) -> float:
    """Discounted gain of the first places as a share of the best possible one, mean of queries.

    Args:
        scores: (Q, P), what a model gives each passage.
        gains: (Q, P), how relevant it is: 0 or more. Queries without any count as 0.
        places: how many of the first places count.
    """
    found = _in_order(scores, gains)[:, :places]
    best = -np.sort(-gains, axis=1)[:, :places]
    discounts = 1 / np.log2(np.arange(2, found.shape[1] + 2))
    ideal = best @ discounts
    return float(np.mean((found @ discounts) / np.where(ideal > 0, ideal, 1)))


def mrr(scores: NDArray[np.floating], gains: NDArray[np.floating], places: int) -> float:
    """One over the place of the first relevant passage, 0 behind the first places; mean."""
    hits = _in_order(scores, gains)[:, :places] > 0
    first = hits.argmax(axis=1)
    return float(np.mean(np.where(hits.any(axis=1), 1 / (first + 1), 0.0)))


def recall(scores: NDArray[np.floating], gains: NDArray[np.floating], places: int) -> float:
    """Share of the relevant passages that stand in the first places; mean of queries."""
    relevant = gains > 0
    hits = (_in_order(scores, gains)[:, :places] > 0).sum(axis=1)
    return float(np.mean(hits / np.maximum(relevant.sum(axis=1), 1)))


def _in_order(scores: NDArray[np.floating], gains: NDArray[np.floating]) -> NDArray[np.floating]:
    """(Q, P) the gains by falling score; among equal scores the smaller gain first."""
    order = np.lexsort((gains, -scores), axis=1)
    return np.take_along_axis(gains, order, axis=1)
