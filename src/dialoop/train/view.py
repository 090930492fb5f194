"""What an objective may ask a model about a packed row.

Models of a known family answer from hidden states and the head, chunked, so that logits are never
whole. Any other model is asked for the logits of the labelled places only, by transformers' own
`logits_to_keep`, which keeps whatever its head does beside the matrix (soft caps, scales).

T is the tokens of the row, N its labelled tokens, D the width, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from dialoop.train.batch import collate, label_weight
from dialoop.train.kernels import attention
from dialoop.train.kernels.cross_entropy import token_nll

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.data.tokenize import Row
    from dialoop.train.batch import Batch

PLAIN_HEADS = frozenset({"llama", "internlm3", "qwen2", "qwen3", "mistral", "smollm3"})
"""Model types whose logits are hidden states times the head, and nothing else."""


@dataclass(frozen=True, slots=True)
class View:
    """A model, as objectives see it."""

    model: PreTrainedModel

    def token_nll(self, batch: Batch) -> Tensor:
        """-log p of each labelled token: (N,) float32 nats."""
        inputs: dict[str, Any] = {
            "input_ids": batch.ids[None],
            "position_ids": batch.positions[None],
            "use_cache": False,
            "bounds": batch.bounds,
            "cu_seqlens": batch.cu_seqlens,
            "max_seqlen": batch.max_seqlen,
        }
        if self.model.config.model_type in PLAIN_HEADS:
            states = self.model.get_decoder()(**inputs).last_hidden_state[0]  # (T, D)
            head: Any = self.model.get_output_embeddings()
            wanted = states[batch.rows]  # (N, D)
            return token_nll(wanted, head.weight.to(wanted.dtype), batch.targets)
        logits = self.model(**inputs, logits_to_keep=batch.rows).logits[0]  # (N, V)
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the model attend within documents, by transformers' attention interface."""
    attention.register()
    model.set_attn_implementation(attention.NAME)


@torch.no_grad()
def packed_nll(
    model: PreTrainedModel, rows: Iterable[Sequence[Row]], *, autocast: torch.dtype | None = None
) -> tuple[float, float]:
    """Total loss of packed documents without gradients.

    Args:
        model: a model that uses packed attention.
        rows: the documents of each packed row.
        autocast: compute type, where the weights are kept in a wider one.

    Returns:
        The weighted sum of -log p over labelled tokens in nats, and the sum of their weights.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = weight = 0.0
    for documents in rows:
        batch = collate(documents, device, label_weight(documents))
        if not len(batch.targets):
            continue
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            nll = View(model).token_nll(batch)
        total += float((nll.double() * batch.weights).sum())
        weight += float(batch.weights.double().sum())
    model.train(was_training)
    return total, weight
