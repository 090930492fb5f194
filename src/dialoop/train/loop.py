"""The one loop: packed rows in, optimiser steps, measurements, checkpoints, events out."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING

import torch

from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Metrics, Progress
from dialoop.train import checkpoint
from dialoop.train.batch import collate, label_weight
from dialoop.train.checkpoint import Position
from dialoop.train.schedule import epoch_bins, rate
from dialoop.train.view import View, packed_nll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.core.events import Event
    from dialoop.data.tokenize import TokenRows
    from dialoop.train.batch import Batch
    from dialoop.train.spec import TrainJob


class Loop:
    """Fits a model to rows.

    Args:
        job: what was asked.
        model: prepared by its tuner, with packed attention.
        rows: the training documents.
        held_out: the validation documents, or None.
        autocast: compute type where the trained weights are wider; None computes in their own.
        emit: receives events.
    """

    def __init__(
        self,
        job: TrainJob,
        model: PreTrainedModel,
        rows: TokenRows,
        held_out: TokenRows | None,
        autocast: torch.dtype | None,
        emit: Callable[[Event], None],
    ) -> None:
        self.job, self.model, self.rows, self.held_out = job, model, rows, held_out
        self.emit, self.autocast = emit, autocast
        self.device = next(model.parameters()).device
        self.capacity = job.batch_size * job.max_length
        self.checkpoints: Path = job.output / "checkpoints"
        self.optimizer = _optimizer(job, model)
        self.at = Position()
        self.steps_per_epoch = math.ceil(len(self._bins(0)) / job.accumulate)
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
        return epoch_bins(self.rows.lengths, self.capacity, self.job.seed, epoch)

    def _groups(self) -> Iterator[list[list[int]]]:
        """The packed rows of each step that this epoch still has."""
        bins = self._bins(self.at.epoch)[self.at.bin :]
        size = self.job.accumulate
        yield from (bins[start : start + size] for start in range(0, len(bins), size))

    def _step(self, group: list[list[int]]) -> None:
        started = time.monotonic()
        documents = [[self.rows.row(i) for i in bin_] for bin_ in group]
        weight = sum(label_weight(part) for part in documents)
        lr = self._set_rate()
        total = torch.zeros((), device=self.device)
        for part in documents:
            total += self._backward(collate(part, self.device, weight))
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(row.ids) for part in documents for row in part)
        loss, seconds = float(total), time.monotonic() - started
        self.at = dataclasses.replace(
            self.at,
            step=self.at.step + 1,
            bin=self.at.bin + len(group),
            tokens=self.at.tokens + tokens,
            seconds=self.at.seconds + seconds,
        )
        self._report(loss, float(norm), lr, tokens / seconds)
        self._maybe_measure_and_save()

    def _backward(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(
            self.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            loss = self.job.objective.loss(View(self.model), batch)
        loss.backward()
        return loss.detach()

    def _set_rate(self) -> float:
        peak = self.job.optim.lr or self.job.tuner.default_lr
        lr = rate(self.job.optim, peak, self.at.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _clip(self) -> torch.Tensor:
        longest = self.job.optim.max_grad_norm or math.inf
        moving = [p for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.clip_grad_norm_(moving, longest)

    def _report(self, loss: float, norm: float, lr: float, speed: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.at.step}",
                hint="lower --optim.lr, or look at the data with `dialoop data inspect`;"
                " earlier checkpoints are whole",
            )
        self.losses.append(loss)
        if self.at.step % self.job.saving.log_steps == 0:
            values = {"loss": loss, "grad_norm": norm, "lr": lr, "tokens_per_s": speed}
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
            loss = self.held_out_loss()
            self.emit(Metrics(self.at.step, {"validation_loss": loss}))
            is_best = self.at.best_loss is None or loss < self.at.best_loss
            self.at = dataclasses.replace(
                self.at,
                best_loss=loss if is_best else self.at.best_loss,
                best_step=self.at.step if is_best else self.at.best_step,
                num_worse=0 if is_best else self.at.num_worse + 1,
            )
            save = save or is_best
        if save:
            path = checkpoint.save(self.checkpoints, self.model, self.optimizer, self.at)
            checkpoint.prune(self.checkpoints, self.job.saving.keep, self.at.best_step)
            self.emit(Artifact("checkpoint", str(path)))

    def held_out_loss(self) -> float:
        """Mean -log p of the validation split's labelled tokens, nats."""
        assert self.held_out is not None, "asked only where there is a split"  # noqa: S101
        rows = self.held_out
        bins = epoch_bins(rows.lengths, self.capacity, self.job.seed, 0)
        documents = ([rows.row(i) for i in bin_] for bin_ in bins)
        total, weight = packed_nll(self.model, documents, autocast=self.autocast)
        return total / weight

    def _is_stale(self) -> bool:
        return 0 < self.job.saving.patience <= self.at.num_worse

    def _path(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"


def _optimizer(job: TrainJob, model: PreTrainedModel) -> torch.optim.AdamW:
    moving = list(checkpoint.trained(model).values())
    groups = [
        {"params": [p for p in moving if p.ndim > 1], "weight_decay": job.optim.weight_decay},
        {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=job.optim.lr or job.tuner.default_lr,
        betas=(job.optim.beta1, job.optim.beta2),
        fused=True,
    )
