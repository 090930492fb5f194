"""Answers by the model in training itself: no second copy, and nothing to keep in step.

Each prompt is read once, however many answers it gets; its keys and values are then repeated. Rows
that have ended leave the batch at once. Each answer has random numbers of its own, by its prompt's
seed, so that neither the batch nor the number of ranks changes it. Where ranks hold shards, each
gathers all parameters in the compute type while it answers, and frees them afterwards.

B is the prompts, A the answers still being written, T the tokens of the longest row, V the
vocabulary.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt
from typing_extensions import override

from dialoop.train.rollouts import Answer, RolloutOption

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.train.rollouts import Policy


class PolicyRollout(RolloutOption, frozen=True):
    """Sample from the model in training, in this process."""

    kind: Literal["policy"] = "policy"
    batch_size: PositiveInt = 128
    """Answers written at once; more is faster and takes more memory."""

    @override
    def open(self, policy: Policy) -> InProcess:
        """Nothing to prepare."""
        return InProcess(self, policy)


class InProcess:
    """Batched sampling with a key-value cache.

    Args:
        settings: how to sample.
        policy: the model, which is in training mode again afterwards if it was.
    """

    def __init__(self, settings: PolicyRollout, policy: Policy) -> None:
        self._settings, self._policy = settings, policy

    def sample(
        self, prompts: Sequence[np.ndarray], num: int, seeds: Sequence[int]
    ) -> list[list[Answer]]:
        """Several answers to each prompt, in order; the same for the same seeds and weights."""
        import torch

        model, kind, root = self._policy.model, self._policy.autocast, self._policy.root
        autocast = torch.autocast(model.device.type, dtype=kind, enabled=kind is not None)
        ask = partial(self._sample, prompts, num, seeds)
        with torch.no_grad(), _generating(model), autocast:
            return ask() if root is None else root.ask_whole(ask)

    def _sample(
        self, prompts: Sequence[np.ndarray], num: int, seeds: Sequence[int]
    ) -> list[list[Answer]]:
        size = max(1, self._settings.batch_size // num)
        found: list[list[Answer]] = []
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            found += self._batch(prompts[part], num, self._chances(seeds[part], num))
        return found

    def _chances(self, seeds: Sequence[int], num: int) -> np.ndarray:
        """(B * num, limit) numbers from 0 to below 1, by which each answer's tokens are drawn."""
        shape = (num, self._settings.max_new_tokens)
        drawn = [np.random.default_rng(seed).random(shape, np.float32) for seed in seeds]
        return np.concatenate(drawn)

    def _batch(
        self, prompts: Sequence[np.ndarray], num: int, chances: np.ndarray
    ) -> list[list[Answer]]:
        import torch
        from transformers import DynamicCache

        model, limit = self._policy.model, self._settings.max_new_tokens
        stops = torch.tensor(self._policy.stop_ids, device=model.device)
        drawn = torch.from_numpy(chances).to(model.device)
        ids, mask = _padded(prompts, model.device)  # (B, T) each
        cache = DynamicCache(config=model.config)
        logits = _next_logits(model, ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)  # (B, V)
        cache.batch_repeat_interleave(num)
        logits, mask = logits.repeat_interleave(num, 0), mask.repeat_interleave(num, 0)
        written: list[list[int]] = [[] for _ in range(len(mask))]
        is_complete = [False] * len(written)
        alive = torch.arange(len(written), device=model.device)  # (A,)
        for step in range(limit):
            chosen = self._draw(logits, drawn[alive, step])  # (A,)
            ended = torch.isin(chosen, stops)
            for row, token, end in zip(
                alive.tolist(), chosen.tolist(), ended.tolist(), strict=True
            ):
                written[row].append(token)
                is_complete[row] = end
            if step + 1 == limit or ended.all():
                break
            if ended.any():
                kept = (~ended).nonzero()[:, 0]
                cache.batch_select_indices(kept)
                alive, chosen, mask = alive[kept], chosen[kept], mask[kept]
            place = mask.sum(1, keepdim=True)  # (A, 1)
            mask = torch.cat([mask, torch.ones_like(place)], 1)
            logits = _next_logits(model, chosen[:, None], mask, place, cache)
        answers = [
            Answer(np.asarray(row, np.int32), end)
            for row, end in zip(written, is_complete, strict=True)
        ]
        return [answers[start : start + num] for start in range(0, len(answers), num)]

    def _draw(self, logits: Tensor, chance: Tensor) -> Tensor:
        """The token of each row that its chance falls on: (A, V) and (A,) to (A,)."""
        import torch

        settings = self._settings
        p = torch.softmax(logits.float() / settings.temperature, -1)
        if settings.top_k:
            least = p.topk(min(settings.top_k, p.shape[-1])).values[:, -1:]
            p = p.masked_fill(p < least, 0)
        if settings.top_p < 1:
            ranked, order = p.sort(descending=True)
            is_out = ranked.cumsum(-1) - ranked >= settings.top_p * ranked.sum(-1, keepdim=True)
            p = p.masked_fill(is_out.scatter(-1, order, is_out), 0)
        whole = p.double().cumsum(-1)
        wanted = chance.double()[:, None] * whole[:, -1:]
        return torch.searchsorted(whole, wanted, right=True)[:, 0]


def _padded(prompts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (B, T) int64, padded on the left."""
    import torch

    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _next_logits(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
) -> Tensor:
    """Logits of the token after each row: (A, V)."""
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


@contextmanager
def _generating(model: PreTrainedModel) -> Generator[None]:
    """Evaluation mode, and attention that knows caches and padding."""
    was_training: bool = model.training
    attention: Any = model.config._attn_implementation  # noqa: SLF001 - it has no public reader
    model.eval()
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)
