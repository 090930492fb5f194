"""Rollouts: one file each; where the answers come from that an online objective learns from."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, PositiveFloat, PositiveInt

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from dialoop.train.parallel.fsdp import Root
    from dialoop.train.tuners import Tuner


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sampled for a prompt."""

    ids: np.ndarray
    """(n,) int32, n at least 1, with the end token where there is one."""
    is_complete: bool
    """Whether it ended by itself, and not at the limit."""
    logps: np.ndarray | None = None
    """(n,) float32: log p of each token as it was drawn, where the sampler is another engine."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The model in training, as samplers need to know it."""

    model: PreTrainedModel
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    tuner: Tuner
    base: Path
    """Folder of the model that training began with."""
    dtype: str
    """`bf16` or `fp32`, of the computation."""
    autocast: torch.dtype | None
    """Compute type where the weights are wider."""
    longest: int
    """Tokens of the longest prompt and answer together."""
    root: Root | None = None
    """What gathers the parameters where they are in shards."""


class Sampler(Protocol):
    """Answers prompts by the policy as it is now."""

    def sample(
        self, prompts: Sequence[np.ndarray], num: int, seeds: Sequence[int]
    ) -> list[list[Answer]]:
        """Several answers to each prompt, in order.

        Where ranks share a model, all of them call this together, each with prompts of its own,
        which may be none.

        Args:
            prompts: (n,) int32 ids each, none empty.
            num: answers to each prompt.
            seeds: of each prompt, below 2**31. The same prompt, seed and weights give the same
                answers whatever is asked beside, as far as the engine rounds alike.
        """
        ...


class RolloutOption(Option, frozen=True):
    """How answers are sampled."""

    max_new_tokens: PositiveInt = 256
    """Longest answer in tokens; it comes on top of the prompt's `max_length`."""
    temperature: PositiveFloat = 1.0
    """Spread of the sampling; the loss takes its probabilities at the same temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that hold this share of the probability."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many likeliest tokens; 0 takes all."""

    def refuse(self, *, tuner: Tuner, is_sharded: bool, is_stretched: bool) -> None:
        """Raise on a policy that cannot be sampled this way.

        Args:
            tuner: what trains it.
            is_sharded: whether ranks hold shards of it.
            is_stretched: whether its positions are scaled.

        Raises:
            ValueError: the field, and why.
        """
        del tuner, is_sharded, is_stretched

    @abstractmethod
    def open(self, policy: Policy) -> Sampler:
        """Make ready to sample.

        Raises:
            MachineError: what it needs is not on this machine.
        """
