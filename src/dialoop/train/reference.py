"""What the model gave every row at the start of training: computed once, kept by content.

A reference objective compares the policy with the model as it was. Its log-probabilities need no
second model and no second forward pass at each step: they are one number a row, computed before
training, whatever the tuner, and the next run on the same model and data finds them.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from dialoop.core.events import Progress
from dialoop.core.files import new_folder
from dialoop.data.pack import best_fit
from dialoop.train.batch import Step, collate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.data.units import Unit
    from dialoop.train.objectives import Objective
    from dialoop.train.parallel.team import Team
    from dialoop.train.view import View


LAYOUT = 2
"""Version of the files below; another version is made anew."""


class References:
    """Numbers of rows, by unit.

    Args:
        values: (r,) float32, of all rows.
        starts: (u + 1,) where each unit's rows begin.
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray) -> None:
        self._values, self._starts = values, starts

    def of(self, numbers: list[int]) -> np.ndarray:
        """(S,) the numbers of these units' rows, one after another."""
        return np.concatenate([self._values[slice(*self._starts[n : n + 2])] for n in numbers])


@torch.no_grad()
def precompute(
    view: View,
    objective: Objective,
    unit: Callable[[int], Unit],
    count: int,
    *,
    capacity: int,
    autocast: torch.dtype | None,
    cache: Path,
    key: str,
    emit: Callable[[Event], None],
    team: Team,
) -> References:
    """Measure every unit with the model as it is.

    Args:
        view: of the policy at its start.
        objective: says what is measured.
        unit: gives a unit by its number; asked only where the result is not known.
        count: how many units there are.
        capacity: tokens of a packed row.
        autocast: compute type, where the weights are wider.
        cache: folder of results, which may be deleted at any time.
        key: identity of model, data and computation.
        emit: receives progress.
        team: the ranks that share the work.
    """
    name = f"{LAYOUT} {key} {objective.measure_key}"
    name = hashlib.sha256(name.encode()).hexdigest()[:32]
    folder = cache / f"references-{name}"
    if not team.agree((folder / "values.npy").exists()):
        units = [unit(number) for number in range(count)]
        starts = np.concatenate([[0], np.cumsum([len(one.rows) for one in units])])
        values = np.zeros(starts[-1], np.float32)
        model, was_training = view.model, view.model.training
        model.eval()
        device = view.device
        lengths = np.asarray([len(one) for one in units])
        bins = best_fit(lengths, max(capacity, int(lengths.max())))
        for done, turn in enumerate(team.deal(len(bins)), 1):
            numbers = bins[turn.index]
            batch = collate([units[n] for n in numbers], device, Step(1.0, 1))
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                found = objective.measure(view, batch).float().cpu().numpy()
            rows = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in numbers])
            if not turn.is_idle:
                values[rows] = found
            emit(Progress("reference", done * team.num_parts, len(bins), "packed rows"))
        model.train(was_training)
        everyone = team.assemble({0: torch.from_numpy(values).to(device)}, [len(values)])
        if team.is_leader:
            with new_folder(folder) as new:
                np.save(new / "values.npy", everyone.cpu().numpy())
                np.save(new / "starts.npy", starts)
        team.wait()
    return References(np.load(folder / "values.npy"), np.load(folder / "starts.npy"))
