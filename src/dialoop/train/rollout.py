"""The joint of online training: a step's prompts to answers to units, seeded by run and step.

Nothing of a rollout outlives its step, so that a run which goes on from a checkpoint makes the same
answers again.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dialoop.data.pack import best_fit
from dialoop.train.batch import Step, collate
from dialoop.train.online import Desk
from dialoop.train.view import View

if TYPE_CHECKING:
    from pathlib import Path

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.samples import SampleSet
    from dialoop.data.tokenize import TokenRows
    from dialoop.data.units import Unit
    from dialoop.train.online import Made, Online
    from dialoop.train.rollouts import Policy
    from dialoop.train.training_set import TrainingSet

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
        template: Template,
        *,
        seed: int,
        capacity: int,
        output: Path,
    ) -> None:
        self._objective, self._policy, self._template = objective, policy, template
        self._seed, self._capacity, self._log = seed, capacity, output / "samples.jsonl"
        self._sampler = objective.rollout.open(policy)
        self._teacher = None if companion is None else objective.open_teacher(companion)
        self.num_prompts = objective.num_prompts
        self.num_updates = objective.num_iterations

    def make(self, units: TrainingSet, numbers: list[int], step: int) -> Made:
        """The units of a step, and what there is to tell about them."""
        made = self._objective.roll(self._desk(units), numbers, step)
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
        return Desk(units, self._sampler, self._teacher, self._template, self._seed)

    @torch.no_grad()
    def _dated(self, units: list[Unit]) -> list[Unit]:
        """The units with the log-probabilities that their tokens have before any update."""
        model, kind = self._policy.model, self._policy.autocast
        was_training = model.training
        model.eval()
        dated = list(units)
        missing = [n for n, unit in enumerate(units) if unit.logps is None]
        lengths = np.asarray([len(units[n]) for n in missing], np.int64)
        for part in best_fit(lengths, max(self._capacity, *lengths.tolist(), 1)):
            numbers = [missing[n] for n in part]
            batch = collate([units[n] for n in numbers], model.device, Step(1.0, 1))
            with torch.autocast(model.device.type, dtype=kind, enabled=kind is not None):
                logps = self._objective.measure(View(model), batch).float()
            counts = torch.bincount(batch.documents, minlength=len(numbers)).tolist()
            for n, own in zip(numbers, logps.cpu().split(counts), strict=True):
                dated[n] = replace(units[n], logps=own.numpy())
        model.train(was_training)
        return dated
