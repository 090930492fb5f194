"""The joint of online training: a step's prompts to answers to units, seeded by run and step.

Nothing of a rollout outlives its step, so that a run which goes on from a checkpoint makes the same
answers again, on any number of ranks.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dialoop.train.batch import Step, collate
from dialoop.train.online import Desk
from dialoop.train.schedule import shared_bins

if TYPE_CHECKING:
    from pathlib import Path

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.samples import SampleSet
    from dialoop.data.tokenize import TokenRows
    from dialoop.data.units import Unit
    from dialoop.train.online import Made, Online
    from dialoop.train.parallel.team import Team
    from dialoop.train.rollouts import Policy
    from dialoop.train.training_set import TrainingSet
    from dialoop.train.view import View

SHOWN = 4
"""Answers of a step that are written to `samples.jsonl`."""


class UnitSamples:
    """The samples of a tokenised set that have a unit, by the unit's number.

    Args:
        samples: what was tokenised, one unit a sample.
        rows: its tokens, which name the samples that were dropped.
    """

    def __init__(self, samples: SampleSet, rows: TokenRows) -> None:
        dropped = deque(item.origin for item in rows.dropped)
        self._samples, self._kept = samples, list[int]()
        for number in range(len(samples)):
            if dropped and samples.origin(number) == dropped[0]:
                dropped.popleft()
            else:
                self._kept.append(number)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, number: int) -> Sample:
        return self._samples[self._kept[number]]


class Rollout:
    """Makes the units of online steps.

    Args:
        objective: what to make of the answers.
        policy: the model in training.
        companion: the frozen model beside it, if any.
        view: of the policy.
        team: the ranks that answer and learn together.
        template: of the policy.
        seed: of the run.
        capacity: tokens of a packed row.
        output: folder of `samples.jsonl`.
    """

    def __init__(
        self,
        objective: Online,
        policy: Policy,
        companion: Policy | None,
        view: View,
        team: Team,
        template: Template,
        *,
        seed: int,
        capacity: int,
        output: Path,
    ) -> None:
        self._objective, self._policy, self._template = objective, policy, template
        self._view, self._team = view, team
        self._seed, self._capacity, self._log = seed, capacity, output / "samples.jsonl"
        self._sampler = objective.rollout.open(policy)
        self._teacher = None if companion is None else objective.open_teacher(companion)
        self.num_prompts = objective.num_prompts
        self.num_updates = objective.num_iterations

    def make(self, units: TrainingSet, numbers: list[int], step: int) -> Made:
        """The units of a step, and what there is to tell about them."""
        made = self._objective.roll(self._desk(units), numbers, step)
        if self._team.is_leader:
            with self._log.open("a", encoding="utf-8") as file:
                for sample in made.samples[:SHOWN]:
                    file.write(json.dumps({"step": step + 1} | sample, ensure_ascii=False) + "\n")
        if self.num_updates > 1 and self._objective.needs_old:
            return replace(made, units=self._dated(made.units))
        return made

    def held_out(self, units: TrainingSet) -> dict[str, float] | None:
        """Loss and metrics of held-out prompts, where the objective measures answers."""
        return self._objective.held_out(self._desk(units))

    def _desk(self, units: TrainingSet) -> Desk:
        return Desk(units, self._sampler, self._teacher, self._template, self._seed, self._team)

    @torch.no_grad()
    def _dated(self, units: list[Unit]) -> list[Unit]:
        """The units with the log-probabilities that their tokens have before any update."""
        model, kind = self._policy.model, self._policy.autocast
        was_training = model.training
        model.eval()
        dated = list(units)
        missing = [n for n, unit in enumerate(units) if unit.logps is None]
        lengths = np.asarray([len(units[n]) for n in missing], np.int64)
        room = max(self._capacity, *lengths.tolist(), 1)
        bins = [
            [missing[n] for n in part] for part in shared_bins(lengths, room, self._team.num_parts)
        ]
        counts = [[_num_labelled(units[n]) for n in numbers] for numbers in bins]
        found: dict[int, torch.Tensor] = {}
        for turn in self._team.deal(len(bins)):
            part = [units[n] for n in bins[turn.index]]
            batch = collate(part, model.device, Step(1.0, 1))
            with torch.autocast(model.device.type, dtype=kind, enabled=kind is not None):
                logps = self._objective.measure(self._view, batch).float()
            found[-1 if turn.is_idle else turn.index] = logps
        if found:
            whole = self._team.assemble(found, list(map(sum, counts))).cpu()
            order = [n for numbers in bins for n in numbers]
            sizes = [size for part in counts for size in part]
            for n, own in zip(order, whole.split(sizes), strict=True):
                dated[n] = replace(units[n], logps=own.numpy())
        model.train(was_training)
        return dated


def _num_labelled(unit: Unit) -> int:
    (row,) = unit.rows
    return int(np.count_nonzero(row.weights[1:]))
