"""Group relative policy optimisation: answers to one prompt are rewarded against one another.

Sources: GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4 (KL by the k3 estimator); DAPO, Yu et
al. 2025, arXiv:2503.14476, eq. 8 (tokens of the step weigh alike), 10 (clip-higher), 11 (dynamic
sampling) and 13 (soft penalty of long answers); Dr. GRPO, Liu et al. 2025, arXiv:2503.20783,
section 3.2; GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7. Checked against the loss of
trl 1.16.

P is the prompts of a step, G the answers to each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from dialoop.core.schema import OneOf
from dialoop.data.units import prompt_units
from dialoop.train.objectives import Companion, Outcome
from dialoop.train.online import Made, Online, answered
from dialoop.train.rewards import Answered, Reward, names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.train.batch import Batch
    from dialoop.train.online import Asked, Desk
    from dialoop.train.rollouts import Answer
    from dialoop.train.view import View


class Grpo(Online, frozen=True):
    """Raise answers that are rewarded above the others to the same prompt."""

    kind: Literal["grpo"] = "grpo"
    rewards: list[Annotated[Reward, OneOf("dialoop.train.rewards")]] = Field(min_length=1)
    """What an answer is rewarded for; their weighted sum counts."""
    num_answers: int = Field(default=8, ge=2)
    """Answers to each prompt."""
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo"] = "dapo"
    """What weighs alike: answers (`grpo`), or tokens, over the step's tokens (`dapo`, `bnpo`) or
    over `max_new_tokens` (`dr_grpo`). `bnpo` differs from `dapo` where micro-batches do; here a
    step is one batch, however it is computed."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether tokens or whole answers (GSPO, with `loss_type` grpo) are weighed and clipped."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """How far below 1 the ratio of new to old probability counts."""
    clip_high: float = Field(default=0.2, ge=0)
    """How far above 1; 0.28 is usual for clip-higher, about 4e-4 for sequences."""
    scale: Literal["group", "batch", "none"] = "group"
    """What divides advantages: the deviation of the group or of the step, or nothing."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the model at the start; without an adapter a frozen copy is
    kept for it. 0 leaves it out."""
    resamples: int = Field(default=0, ge=0)
    """Dynamic sampling: how often groups whose rewards are all equal are replaced by groups of
    other prompts; those that are left then stay."""
    mask_truncated: bool = False
    """Learn nothing from answers that were cut off at `max_new_tokens`."""
    overlong_tokens: int = Field(default=0, ge=0)
    """Soft penalty: over these last tokens before `max_new_tokens` the reward falls by up to 1."""

    accepts: ClassVar = frozenset({"prompt", "dialogue"})
    needs_old: ClassVar = True

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """A prompt; the last answer of a dialogue is left off."""
        return prompt_units(sample, template)

    @override
    def companion(self, policy: str, *, has_adapter: bool) -> Companion | None:
        """A frozen copy, where a reference is needed and no adapter can be switched off."""
        return Companion(policy) if self.beta and not has_adapter else None

    @override
    def roll(self, desk: Desk, numbers: list[int], step: int) -> Made:
        """Groups of answers, each a unit with its advantage."""
        groups = self._groups(desk, numbers, step, 0)
        is_flat = [group.is_flat for group in groups]
        for attempt in range(1, self.resamples + 1):
            flat = [n for n, group in enumerate(groups) if group.is_flat]
            if not flat:
                break
            others = desk.chance(step, attempt, 1).integers(len(desk.units), size=len(flat))
            again = self._groups(desk, others.tolist(), step, attempt)
            is_flat += [group.is_flat for group in again]
            for n, group in zip(flat, again, strict=True):
                groups[n] = group
        totals = np.stack([group.totals for group in groups])  # (P, G)
        scaled = advantages(totals, self.scale)
        units = [
            answered(
                desk.prompt(group.number),
                answer,
                value=float(value),
                weight=0.0 if self.mask_truncated and not answer.is_complete else 1.0,
            )
            for group, values in zip(groups, scaled, strict=True)
            for answer, value in zip(group.answers, values, strict=True)
        ]
        metrics = self._metrics(groups) | {"flat_groups": float(np.mean(is_flat))}
        return Made(units, metrics, [group.shown for group in groups])

    @override
    def held_out(self, desk: Desk) -> dict[str, float] | None:
        """Rewards of answers to all held-out prompts; the loss is the mean reward, negated."""
        groups = self._groups(desk, range(len(desk.units)), 0, 0)
        metrics = self._metrics(groups)
        return {"loss": -metrics["reward"]} | metrics

    @override
    def measure(self, view: View, batch: Batch) -> Tensor:
        """(N,) log-probabilities at the temperature of the sampling."""
        return view.token_logps(batch, temperature=self.rollout.temperature)

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """The clipped surrogate of the step's answers, and the KL divergence where it counts."""
        import torch

        logps = self.measure(view, batch)  # (N,)
        old = logps.detach() if batch.old is None else batch.old
        ratio = self._log_ratio(logps - old, batch).exp()
        advantage = batch.per_token(batch.values)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        losses = -torch.minimum(ratio * advantage, clipped * advantage)
        is_clipped = torch.where(
            advantage > 0, ratio > 1 + self.clip_high, (ratio < 1 - self.clip_low) & (advantage < 0)
        )
        metrics = {
            "clip_share": batch.token_mean(is_clipped.float()),
            "entropy": -batch.token_mean(logps.detach()),
        }
        if self.beta:
            apart = view.reference(batch, self.measure) - logps
            kl = apart.exp() - apart - 1
            losses = losses + self.beta * kl
            metrics["kl"] = batch.token_mean(kl.detach())
        return Outcome(self._mean(losses, batch), metrics)

    def _log_ratio(self, differences: Tensor, batch: Batch) -> Tensor:
        """(N,) of each token, or the mean of its answer's."""
        if self.ratio == "token":
            return differences
        return batch.per_token(batch.document_mean(differences))

    def _mean(self, losses: Tensor, batch: Batch) -> Tensor:
        """This micro-batch's share of the step's loss: (N,) to ()."""
        match self.loss_type:
            case "grpo":
                return batch.unit_mean(batch.document_mean(losses))
            case "dr_grpo":
                sums = batch.document_sum(losses)
                return batch.unit_mean(sums / self.rollout.max_new_tokens)
            case "bnpo" | "dapo":
                return batch.token_mean(losses)

    def _groups(self, desk: Desk, numbers: Sequence[int], step: int, attempt: int) -> list[_Group]:
        """Answers and rewards of some prompts, a group whole on one rank."""
        return desk.shared(numbers, partial(self._answer, desk, step, attempt))

    def _answer(self, desk: Desk, step: int, attempt: int, asked: Sequence[Asked]) -> list[_Group]:
        found = desk.answers(asked, self.num_answers, step, attempt)
        answers = [
            Answered.of(desk.units.sample(one.number), desk.text(answer), answer)
            for one, group in zip(asked, found, strict=True)
            for answer in group
        ]
        shape = (len(self.rewards), len(asked), self.num_answers)
        parts = np.reshape([reward.scores(answers) for reward in self.rewards], shape)
        scores = np.moveaxis(parts.astype(np.float64), 0, -1)  # (P, G, rewards)
        weights = np.asarray([reward.weight for reward in self.rewards])
        lengths = np.reshape([len(a.ids) for group in found for a in group], shape[1:])
        totals = scores @ weights + self._length_penalty(lengths)  # (P, G)
        firsts = answers[:: self.num_answers]
        return [
            _Group(one.number, group, score, total, self._shown(first, score, total))
            for one, group, score, total, first in zip(
                asked, found, scores, totals, firsts, strict=True
            )
        ]

    def _shown(self, first: Answered, scores: np.ndarray, totals: np.ndarray) -> dict[str, Any]:
        """A group's first answer, for people to read."""
        return {
            "prompt": first.prompt[-1].text,
            "answer": first.text,
            "rewards": dict(zip(names_of(self.rewards), scores[0].tolist(), strict=True)),
            "reward": float(totals[0]),
        }

    def _length_penalty(self, lengths: np.ndarray) -> np.ndarray:
        """0, falling to -1 over the last `overlong_tokens` before the limit."""
        if not self.overlong_tokens:
            return np.zeros(lengths.shape)
        start = self.rollout.max_new_tokens - self.overlong_tokens
        return -np.clip((lengths - start) / self.overlong_tokens, 0, 1)

    def _metrics(self, groups: list[_Group]) -> dict[str, float]:
        totals = np.stack([group.totals for group in groups])  # (P, G)
        means = np.mean([group.scores for group in groups], axis=(0, 1))
        answers = [answer for group in groups for answer in group.answers]
        names = names_of(self.rewards)
        return {
            "reward": float(totals.mean()),
            "reward_std": float(totals.std(1, ddof=1).mean()),
            "answer_tokens": float(np.mean([len(answer.ids) for answer in answers])),
            "complete_share": float(np.mean([answer.is_complete for answer in answers])),
        } | {f"reward_{name}": float(mean) for name, mean in zip(names, means, strict=True)}


@dataclass(frozen=True, slots=True)
class _Group:
    """A prompt's answers and what they were rewarded."""

    number: int
    answers: list[Answer]
    scores: np.ndarray
    """(G, r) of each reward."""
    totals: np.ndarray
    """(G,)"""
    shown: dict[str, Any]
    """Its first answer, for people to read."""

    @property
    def is_flat(self) -> bool:
        """Whether all rewards are equal, so that there is nothing to learn."""
        return bool(np.ptp(self.totals) < 1e-8)


def advantages(rewards: np.ndarray, scale: Literal["group", "batch", "none"]) -> np.ndarray:
    """What answers got beyond the mean of their group.

    Args:
        rewards: (P, G).
        scale: what they are divided by: the deviation (of a sample) of the group, or of all.

    Returns:
        (P, G) float64.
    """
    centred = rewards - rewards.mean(1, keepdims=True)
    match scale:
        case "group":
            return centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        case "batch":
            return centred / (rewards.std(ddof=1) + 1e-4)
        case "none":
            return centred
