"""Pure decisions of a run: which documents make a step, and the learning rate at each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dialoop.data.pack import best_fit

if TYPE_CHECKING:
    from dialoop.train.spec import Optim

WINDOW = 2048
"""Documents shuffled together before they are packed, so that rows mix long and short ones anew."""


def epoch_bins(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> list[list[int]]:
    """The packed rows of one epoch, in order; the same for the same arguments.

    Args:
        lengths: (n,) tokens of each document, none above `capacity`.
        capacity: tokens of a packed row.
        seed: of the run.
        epoch: from 0.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    bins: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        bins += [[int(window[i]) for i in part] for part in best_fit(lengths[window], capacity)]
    return [bins[i] for i in random.permutation(len(bins))]


def prompt_bins(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """The prompts of one epoch, shuffled, `size` at a time; the same for the same arguments."""
    order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return [order[start : start + size] for start in range(0, count, size)]


def shared_bins(lengths: np.ndarray, capacity: int, num_ranks: int) -> list[list[int]]:
    """Packed rows of documents in a number that the ranks share evenly, where that fits.

    Args:
        lengths: (n,) tokens of each document, none above `capacity`.
        capacity: tokens of a packed row.
        num_ranks: that compute a row each at once.
    """
    packed = best_fit(lengths, capacity)
    count = min(len(lengths), math.ceil(len(packed) / num_ranks) * num_ranks)
    if count == len(packed):
        return packed
    bins: list[list[int]] = [[] for _ in range(count)]
    room = [capacity] * count
    for n in np.argsort(-lengths, kind="stable").tolist():
        emptiest = max(range(count), key=room.__getitem__)
        bins[emptiest].append(n)
        room[emptiest] -= int(lengths[n])
    return bins if min(room) >= 0 else packed


def rate(optim: Optim, peak: float, step: int, steps: int) -> float:
    """Learning rate of a step.

    Source of wsd: Hu et al. 2024, arXiv:2404.06395, section 4, with a linear decay.

    Args:
        optim: schedule, warm-up, decay and last rate.
        peak: the highest rate.
        step: from 0.
        steps: in the whole run.
    """
    warm = math.ceil(optim.warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    shape = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "constant": 1.0,
        "wsd": min(1.0, (steps - step) / math.ceil(optim.decay * steps)),
    }[optim.schedule]
    return peak * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * shape)
