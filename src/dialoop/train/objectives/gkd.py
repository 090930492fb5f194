"""Distillation: the student's token distributions are drawn to a teacher's.

Sources: generalised JSD and on-policy share, Agarwal et al. 2023, arXiv:2306.13649, eq. 1 and
algorithm 1; reverse KL, Gu et al. 2023 (MiniLLM), arXiv:2306.08543, eq. 1; sequence-level answers,
Kim and Rush 2016, arXiv:1606.07947. Checked against trl 1.16.

The logits of student and teacher exist for a chunk of labelled tokens at a time. A teacher behind
an endpoint tells its likeliest tokens only: they and one class for all others are compared, which
is never more than the whole divergence.

N is the labelled tokens, n those of a chunk, V the vocabulary, K the tokens that an endpoint tells.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import override

from dialoop.data.units import text_units
from dialoop.train.endpoint import Endpoint  # noqa: TC001  pydantic reads the annotation
from dialoop.train.objectives import Companion, Outcome
from dialoop.train.online import Made, Online, answered
from dialoop.train.rollouts.policy import PolicyRollout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.train.batch import Batch
    from dialoop.train.online import Asked, Desk
    from dialoop.train.rollouts import Answer, Policy, Sampler
    from dialoop.train.view import View

CHUNK_ROWS = 512
"""Labelled tokens whose logits exist at once, in float32, of both models."""


class Gkd(Online, frozen=True):
    """Imitate a teacher's distribution of every token."""

    kind: Literal["gkd"] = "gkd"
    teacher: str | None = None
    """The teacher: a short name, a folder or an address, with the student's vocabulary."""
    teacher_quantization: Literal["nf4"] | None = None
    """Hold the teacher in 4 bits."""
    endpoint: Endpoint | None = None
    """In place of `teacher`: one that serves with log-probabilities of prompts (vLLM)."""
    top_k: PositiveInt = 20
    """Tokens whose probability the endpoint is asked for; vLLM allows `--max-logprobs` of them."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """0 is the forward KL divergence (teacher to student), 1 the reverse one; between them lies the
    generalised Jensen-Shannon divergence with the teacher's weight in the mixture."""
    temperature: PositiveFloat = 1.0
    """Both models' logits are divided by it in the loss."""
    lmbda: float = Field(default=0.0, ge=0, le=1)
    """Share of the prompts whose answer is the student's own (on-policy)."""
    seq_kd: bool = False
    """Take answers of the teacher, not of the data, where the student's own are not taken."""

    accepts: ClassVar = frozenset({"dialogue", "text"})

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if (self.teacher is None) == (self.endpoint is None):
            raise ValueError("gkd needs one teacher: `teacher` or `endpoint`")
        if self.endpoint is not None and (self.seq_kd or self.teacher_quantization):
            name = "seq_kd" if self.seq_kd else "teacher_quantization"
            raise ValueError(f"{name} needs a `teacher` on this machine, not an endpoint")
        if self.endpoint is not None and self.temperature != 1:
            raise ValueError("temperature: an endpoint tells its probabilities at temperature 1")
        return self

    @property
    @override
    def is_online(self) -> bool:
        """Whether any answer is sampled."""
        return self.lmbda > 0 or self.seq_kd

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """A text, or a dialogue's answers."""
        return text_units(sample, template)

    @override
    def check(self, template: Template) -> None:
        """Ask an endpoint whether it can teach."""
        from dialoop.train.teacher import check_endpoint

        if self.endpoint is not None:
            check_endpoint(self.endpoint, template.tokenizer)

    @override
    def companion(self, policy: str, *, has_adapter: bool) -> Companion | None:
        """The teacher, unless it is behind an endpoint."""
        return None if self.teacher is None else Companion(self.teacher, self.teacher_quantization)

    @override
    def open_teacher(self, companion: Policy) -> Sampler | None:
        """The teacher in this process, where its answers are learned."""
        settings = self.rollout.model_dump(exclude={"kind"})
        known = {name: settings[name] for name in PolicyRollout.model_fields if name in settings}
        return PolicyRollout(**known).open(companion) if self.seq_kd else None

    @override
    def roll(self, desk: Desk, numbers: list[int], step: int) -> Made:
        """The step's units, with answers of the student or the teacher where they are wanted."""
        drawn = desk.chance(step, 0).random(len(numbers)) < self.lmbda
        made = {n: desk.units[n] for n in numbers}
        own = [n for n, is_own in zip(numbers, drawn, strict=True) if is_own]
        others = [n for n in numbers if n not in own]
        for chosen, by_teacher in ((own, False), (others if self.seq_kd else [], True)):
            if chosen:
                place = (step, int(by_teacher))
                work = partial(_answers, desk, place, by_teacher=by_teacher)
                found = desk.shared(chosen, work)
                for n, (answer,) in zip(chosen, found, strict=True):
                    made[n] = answered(desk.prompt(n), answer)
        return Made(list(made.values()), {"own_share": len(own) / len(numbers)})

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the labelled tokens of the whole step."""
        if self.endpoint is None:
            return Outcome(batch.token_mean(self._from_model(view, batch)))
        return Outcome(batch.token_mean(self._from_endpoint(view, batch, self.endpoint)))

    def _from_model(self, view: View, batch: Batch) -> Tensor:
        """(N,) divergences from the companion's logits."""
        import torch

        assert view.companion is not None, "run opens the teacher"  # noqa: S101
        student = view.token_logits(batch)
        with torch.no_grad():
            teacher = view.companion.token_logits(batch)

        def one(part: slice) -> Tensor:
            with torch.no_grad():
                wanted = teacher(part)
            given = student(part)
            width = min(given.shape[-1], wanted.shape[-1])  # tables may be padded differently
            given, wanted = (x[:, :width] / self.temperature for x in (given, wanted))
            return divergence(given.log_softmax(-1), wanted.log_softmax(-1), self.beta)

        return by_chunks(one, len(batch.targets))

    def _from_endpoint(self, view: View, batch: Batch, endpoint: Endpoint) -> Tensor:
        """(N,) divergences over what the endpoint tells and the rest."""
        from dialoop.train.teacher import likeliest

        ids, logps = likeliest(endpoint, batch, self.top_k)  # (N, K) each
        student = view.token_logits(batch)

        def one(part: slice) -> Tensor:
            given = student(part).log_softmax(-1).gather(-1, ids[part])
            return divergence(_with_rest(given), _with_rest(logps[part]), self.beta)

        return by_chunks(one, len(batch.targets))


def _answers(
    desk: Desk, place: tuple[int, ...], asked: Sequence[Asked], *, by_teacher: bool
) -> list[list[Answer]]:
    return desk.answers(asked, 1, *place, by_teacher=by_teacher)


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of each row; forward KL at 0, reverse KL at 1.

    Args:
        student: (n, V) float32 log-probabilities.
        teacher: the same of the teacher.
        beta: the teacher's weight in the mixture.

    Returns:
        (n,) nats.
    """
    import torch

    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def _with_rest(logps: Tensor) -> Tensor:
    """(n, K) log-probabilities and that of all other tokens together: (n, K + 1)."""
    import torch

    rest = (1 - logps.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log()
    return torch.cat([logps, rest], -1)


def by_chunks(one: Callable[[slice], Tensor], length: int, *, chunk: int = CHUNK_ROWS) -> Tensor:
    """The results of all chunks; in the backward pass each is computed again, then forgotten."""
    import torch
    from torch.utils.checkpoint import checkpoint

    parts = [slice(n, min(n + chunk, length)) for n in range(0, length, chunk)]
    if not torch.is_grad_enabled():
        return torch.cat([one(part) for part in parts])
    again = partial(checkpoint, one, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(part) for part in parts])
