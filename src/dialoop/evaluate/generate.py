"""Token-level generation for many prompts at once.

Prompts are sorted by length and padded on the left, so that every answer of a batch starts at the
same place and little is padded.

B is the prompts of a batch, T the tokens of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialoop.core.events import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from dialoop.core.events import Event
    from dialoop.evaluate.spec import Generation


@dataclass(frozen=True, slots=True)
class Generator:
    """Continues prompts by transformers' own `generate`."""

    model: PreTrainedModel
    stop_ids: Sequence[int]
    """Tokens that end an answer; at least one."""
    settings: Generation

    def answer(
        self, prompts: Sequence[list[int]], emit: Callable[[Event], None]
    ) -> list[list[int]]:
        """The continuation of each prompt, in the order given, without its end token."""
        import torch

        self.model.set_attn_implementation("sdpa")
        torch.manual_seed(self.settings.seed)
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), self.settings.batch_size):
            emit(Progress("answer", start, len(order), "questions"))
            batch = order[start : start + self.settings.batch_size]
            answers = self._batch([prompts[n] for n in batch])
            found.update(zip(batch, answers, strict=True))
        emit(Progress("answer", len(order), len(order), "questions"))
        return [found[n] for n in range(len(prompts))]

    def _batch(self, prompts: list[list[int]]) -> list[list[int]]:
        import torch

        longest = max(map(len, prompts))
        pad = self.stop_ids[0]
        ids = torch.full((len(prompts), longest), pad)  # (B, T)
        mask = torch.zeros_like(ids)
        for n, prompt in enumerate(prompts):
            ids[n, longest - len(prompt) :] = torch.tensor(prompt)
            mask[n, longest - len(prompt) :] = 1
        with torch.inference_mode():
            out: Any = self.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=self.settings.max_new_tokens,
                eos_token_id=list(self.stop_ids),
                pad_token_id=pad,
                **_sampling(self.settings),
            )
        return [self._cut(row) for row in out[:, longest:].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((n for n, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return ids[:end]


def _sampling(settings: Generation) -> dict[str, Any]:
    if not settings.temperature:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": 0,
    }
