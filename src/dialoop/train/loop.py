"""The one loop: packed rows in, optimiser steps, measurements, checkpoints, events out."""

from __future__ import annotations

import dataclasses
import math
import time
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Metrics, Progress
from dialoop.train import checkpoint
from dialoop.train.batch import Step, collate, label_weight, num_rows
from dialoop.train.checkpoint import Position
from dialoop.train.parallel.fsdp import whole
from dialoop.train.schedule import epoch_bins, prompt_bins, rate, shared_bins
from dialoop.train.training_set import TrainingSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from dialoop.core.events import Event
    from dialoop.train.parallel.team import Team
    from dialoop.train.rollout import Rollout
    from dialoop.train.spec import TrainJob
    from dialoop.train.view import View


class Loop:
    """Fits a model to rows.

    Args:
        job: what was asked.
        view: of the model, prepared by its tuner, with packed attention.
        rows: the training units.
        held_out: the validation units, or None.
        autocast: compute type where the trained weights are wider; None computes in their own.
        emit: receives events.
        team: the ranks that share the work.
        rollout: makes the units of a step, where the objective is online.
    """

    def __init__(
        self,
        job: TrainJob,
        view: View,
        rows: TrainingSet,
        held_out: TrainingSet | None,
        autocast: torch.dtype | None,
        emit: Callable[[Event], None],
        team: Team,
        rollout: Rollout | None = None,
    ) -> None:
        self.team, self.view, self.rollout, model = team, view, rollout, view.model
        self.group_size = job.accumulate * team.num_parts
        self.job, self.model, self.rows, self.held_out = job, model, rows, held_out
        self.emit, self.autocast = emit, autocast
        self.device = view.device
        self.objective = job.objective
        self.capacity = job.batch_size * job.max_length
        self.checkpoints: Path = job.output / "checkpoints"
        self.optimizer = job.tuner.optimizer(model, job.optim, job.optimizer, job.seed)
        self.at = Position()
        self.steps_per_epoch = math.ceil(len(self._bins(0)) / self.group_size)
        self.num_steps = job.max_steps or math.ceil(self.steps_per_epoch * job.epochs)
        self.losses: list[float] = []

    def resume(self) -> bool:
        """Go back to the newest checkpoint; False when there is none."""
        path = checkpoint.newest(self.checkpoints)
        if path is None:
            return False
        self.at = checkpoint.restore(path, self.model, self.optimizer)
        return True

    def fit(self) -> Position:
        """Run to the end, and leave the best weights in the model.

        Raises:
            UserError: the loss is not a number.
            MachineError: a checkpoint could not be written.
        """
        self.model.train()
        if self.at.step == 0 and self.held_out is not None and self.job.saving.eval_on_start:
            self.at = dataclasses.replace(self.at, first_loss=self._measure())
        while self.at.step < self.num_steps and not self._is_stale():
            for group in self._groups():
                self._step(group)
                if self.at.step >= self.num_steps or self._is_stale():
                    break
            else:
                self.at = dataclasses.replace(self.at, epoch=self.at.epoch + 1, bin=0)
        if checkpoint.newest(self.checkpoints) != self._path(self.at.step):
            self._measure_and_save(measure=False, save=True)
        if self.at.best_step is not None and self.at.best_step != self.at.step:
            checkpoint.load_weights(self._path(self.at.best_step), self.model)
        self.model.eval()
        return self.at

    def _bins(self, epoch: int) -> list[list[int]]:
        if self.rollout is not None:
            return prompt_bins(len(self.rows), self.rollout.num_prompts, self.job.seed, epoch)
        return epoch_bins(self.rows.lengths, self._room(self.rows), self.job.seed, epoch)

    def _room(self, units: TrainingSet) -> int:
        """Tokens of a packed row: as asked, and never less than the longest unit."""
        return max(self.capacity, int(units.lengths.max()))

    def _groups(self) -> Iterator[list[list[int]]]:
        """The packed rows of each step that this epoch still has."""
        bins = self._bins(self.at.epoch)[self.at.bin :]
        size = self.group_size
        yield from (bins[start : start + size] for start in range(0, len(bins), size))

    def _step(self, group: list[list[int]]) -> None:
        started = time.monotonic()
        lr = self._set_rate()
        self.team.seed(self.job.seed, self.at.step)
        units, bins, updates, facts = self.rows, group, 1, dict[str, float]()
        if self.rollout is not None:
            made = self.rollout.make(
                self.rows, [n for numbers in group for n in numbers], self.at.step
            )
            units, updates, facts = TrainingSet(made), self.rollout.num_updates, made.metrics
            bins = shared_bins(units.lengths, self._room(units), self.team.num_parts)
        totals: dict[str, float] = {}
        norm = 0.0
        with self.job.tuner.step(self.model, self.optimizer, self.at.step, self.job.seed):
            for _ in range(updates):
                totals = self._run(units, bins, train=True) | facts
                norm = float(self._clip())
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        tokens = updates * int(sum(units.lengths[numbers].sum() for numbers in bins))
        seconds = time.monotonic() - started
        self.at = dataclasses.replace(
            self.at,
            step=self.at.step + 1,
            bin=self.at.bin + len(group),
            tokens=self.at.tokens + tokens,
            seconds=self.at.seconds + seconds,
        )
        self._report(totals, norm, lr, tokens / seconds)
        self._maybe_measure_and_save()

    def _run(self, units: TrainingSet, group: list[list[int]], *, train: bool) -> dict[str, float]:
        """Loss and metrics of a step's micro-batches; gradients are left in the parameters."""
        parts = [[units[n] for n in numbers] for numbers in group]
        step = Step(
            weight=sum(map(label_weight, parts)),
            num_units=sum(map(len, parts)),
            first_weight=sum(label_weight(part, rows=1) for part in parts),
        )
        is_whole = len(group) == self.team.num_parts == 1
        if self.objective.surveys and not (is_whole and self.objective.sees_itself):
            state = checkpoint.random_state()
            step = dataclasses.replace(step, surveyed=self._survey(units, group, step))
            checkpoint.set_random_state(state)  # dropout falls on the same places again
        places = [0, *accumulate(map(num_rows, parts))]
        totals: dict[str, Tensor] = {}
        for turn in self.team.deal(len(group)):
            part, share = parts[turn.index], self.team.share(turn)
            references = units.references
            known = None if references is None else references.of(group[turn.index])
            batch = collate(part, self.device, step, place=places[turn.index], reference=known)
            with self._computing():
                outcome = self.objective.loss(self.view, batch)
            if train:
                (outcome.loss * share).backward()
            for name, value in {"loss": outcome.loss, **outcome.metrics}.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * share
        if train and self.view.root is None:
            self.team.sum_gradients(checkpoint.trained(self.model).values())
        return self.team.sum_totals(totals)

    @torch.no_grad()
    def _survey(self, units: TrainingSet, group: list[list[int]], step: Step) -> Tensor:
        parts = [[self.objective.survey_unit(units, n) for n in numbers] for numbers in group]
        found: dict[int, Tensor] = {}
        for turn in self.team.deal(len(group)):
            known = units.survey_references
            reference = None if known is None else known.of(group[turn.index])
            batch = collate(parts[turn.index], self.device, step, reference=reference)
            with self._computing():
                surveyed = self.objective.survey(self.view, batch)
            found[-1 if turn.is_idle else turn.index] = surveyed
        return self.team.assemble(found, [num_rows(part) for part in parts])

    def _computing(self) -> torch.autocast:
        kind = self.autocast
        return torch.autocast(self.device.type, dtype=kind, enabled=kind is not None)

    def _set_rate(self) -> float:
        peak = self.job.optim.lr or self.job.tuner.default_lr
        lr = rate(self.job.optim, peak, self.at.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def _clip(self) -> torch.Tensor:
        longest = self.job.optim.max_grad_norm or math.inf
        moving = [p for p in self.model.parameters() if p.grad is not None]
        return whole(torch.nn.utils.clip_grad_norm_(moving, longest))

    def _report(self, totals: dict[str, float], norm: float, lr: float, speed: float) -> None:
        loss = totals["loss"]
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.at.step}",
                hint="lower --optim.lr, or look at the data with `dialoop data inspect`;"
                " earlier checkpoints are whole",
            )
        self.losses.append(loss)
        if self.at.step % self.job.saving.log_steps == 0:
            values = totals | {"grad_norm": norm, "lr": lr, "tokens_per_s": speed}
            self.emit(Metrics(self.at.step, values))
        note = f"loss {loss:.3f}, {speed:,.0f} tokens/s"
        self.emit(Progress("train", self.at.step, self.num_steps, "steps", note))

    def _maybe_measure_and_save(self) -> None:
        is_end = self.at.step == self.num_steps
        measure = is_end or self._is_due(self.job.saving.eval_steps)
        save = is_end or self._is_due(self.job.saving.save_steps)
        if measure or save:
            self._measure_and_save(measure=measure, save=save)

    def _is_due(self, every: int) -> bool:
        return self.at.step % (every or self.steps_per_epoch) == 0

    def _measure_and_save(self, *, measure: bool, save: bool) -> None:
        if measure and self.held_out is not None:
            loss = self._measure()
            is_best = self.at.best_loss is None or loss < self.at.best_loss
            self.at = dataclasses.replace(
                self.at,
                best_loss=loss if is_best else self.at.best_loss,
                best_step=self.at.step if is_best else self.at.best_step,
                num_worse=0 if is_best else self.at.num_worse + 1,
            )
            save = save or is_best
        if save:
            is_leader = self.team.is_leader
            path = checkpoint.save(
                self.checkpoints, self.model, self.optimizer, self.at, write=is_leader
            )
            if is_leader:
                checkpoint.prune(self.checkpoints, self.job.saving.keep, self.at.best_step)
            self.team.wait()
            self.emit(Artifact("checkpoint", str(path)))

    @torch.no_grad()
    def _measure(self) -> float:
        """Loss of the validation split, which is measured as one step."""
        assert self.held_out is not None, "asked only where there is a split"  # noqa: S101
        units = self.held_out
        totals = self.rollout.held_out(units) if self.rollout is not None else None
        if totals is None:
            self.model.eval()
            bins = epoch_bins(units.lengths, self._room(units), self.job.seed, 0)
            totals = self._run(units, bins, train=False)
            self.model.train()
        self.emit(Metrics(self.at.step, {f"validation_{k}": v for k, v in totals.items()}))
        return totals["loss"]

    def _is_stale(self) -> bool:
        return 0 < self.job.saving.patience <= self.at.num_worse

    def _path(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"
