"""What an objective may ask a model about a packed row.

Models of a known family answer from hidden states and the head, chunked, so that logits are never
whole. Any other model is asked for the logits of the labelled places only, by transformers' own
`logits_to_keep`, which keeps whatever its head does beside the matrix (soft caps, scales).

T is the tokens of the row, N its labelled tokens, S its documents, D the width, V the vocabulary.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from dialoop.models import heads, lora
from dialoop.train.batch import Step, collate, label_weight
from dialoop.train.kernels import attention
from dialoop.train.kernels.cross_entropy import token_nll

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.data.units import Unit
    from dialoop.models.embeddings import Pooling
    from dialoop.train.batch import Batch

PLAIN_HEADS = frozenset({"llama", "internlm3", "qwen2", "qwen3", "mistral", "smollm3"})
"""Model types whose logits are hidden states times the head, and nothing else."""


@dataclass(frozen=True, slots=True)
class View:
    """A model, as objectives see it."""

    model: PreTrainedModel
    companion: View | None = None
    """A second, frozen model: a teacher, or the policy's start where no adapter gives it."""

    def token_nll(
        self,
        batch: Batch,
        *,
        smoothing: float = 0.0,
        noise: float = 0.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """-log p of each labelled token.

        Args:
            batch: a packed row.
            smoothing: share of the target's probability spread over the vocabulary.
            noise: NEFTune's alpha; 0 adds no noise.
            temperature: the logits are divided by it.

        Returns:
            (N,) float32 nats.
        """
        with _noise(self.model, batch, noise):
            if self.model.config.model_type in PLAIN_HEADS:
                wanted = self.hidden(batch)[batch.rows] / temperature  # (N, D)
                head: Any = self.model.get_output_embeddings()
                weight = head.weight.to(wanted.dtype)
                return token_nll(wanted, weight, batch.targets, smoothing=smoothing)
            inputs = _inputs(self.model, batch)
            logits = self.model(**inputs, logits_to_keep=batch.rows).logits[0]  # (N, V)
        return F.cross_entropy(
            logits.float() / temperature, batch.targets, reduction="none", label_smoothing=smoothing
        )

    def token_logps(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log p of each labelled token: (N,) float32."""
        return -self.token_nll(batch, temperature=temperature)

    def token_logits(self, batch: Batch) -> Callable[[slice], Tensor]:
        """Gives the (n, V) float32 logits of a part of the N labelled tokens."""
        if self.model.config.model_type not in PLAIN_HEADS:
            inputs = _inputs(self.model, batch)
            logits = self.model(**inputs, logits_to_keep=batch.rows).logits[0]  # (N, V)
            return lambda part: logits[part].float()
        wanted = self.hidden(batch)[batch.rows]  # (N, D)
        head: Any = self.model.get_output_embeddings()
        return lambda part: (wanted[part] @ head.weight.to(wanted.dtype).T).float()

    def sequence_logps(self, batch: Batch) -> Tensor:
        """Log p of the labelled tokens of each document, weighted and summed: (S,) float32."""
        return batch.document_sum(self.token_logps(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """(T, D) the states that the head reads."""
        body: Any = self.model.base_model
        return body(**_inputs(self.model, batch)).last_hidden_state[0]

    def scores(self, batch: Batch) -> Tensor:
        """(S, L) float32, the scores of each document by the model's own head."""
        model: Any = self.model
        hidden = self.hidden(batch)  # (T, D)
        if heads.is_bidirectional(model):
            first = hidden[batch.cu_seqlens[:-1].long()][:, None]  # (S, 1, D)
            if model.config.model_type == "bert":
                first = model.dropout(model.bert.pooler(first))
            return model.classifier(first).float()
        last = hidden[batch.cu_seqlens[1:].long() - 1].float()  # (S, D)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(last, model.score.weight.float())

    def pooled(self, batch: Batch, pooling: Pooling) -> Tensor:
        """(S, D) float32, one vector of each document."""
        hidden = self.hidden(batch).float()  # (T, D)
        match pooling:
            case "last":
                return hidden[batch.cu_seqlens[1:].long() - 1]
            case "cls":
                return hidden[batch.cu_seqlens[:-1].long()]
            case "mean":
                zero = hidden.new_zeros(batch.num_documents, hidden.shape[1])
                sums = zero.index_add(0, batch.owners, hidden)  # (S, D)
                return sums / batch.cu_seqlens.diff()[:, None]

    def choice_logits(self, batch: Batch, num: int) -> Tensor:
        """(S, num) float32: logits of each document's labelled tokens, `num` of them.

        All are read where the first of them is predicted; see `Template.choice_row`.
        """
        places = batch.rows.view(-1, num)[:, 0]  # (S,)
        logits = self.model(**_inputs(self.model, batch), logits_to_keep=places).logits[0]  # (S, V)
        return logits.float().gather(1, batch.targets.view(-1, num))

    def reference(self, batch: Batch, measure: Callable[[View, Batch], Tensor]) -> Tensor:
        """What the reference model gives, as `measure` has it: float32, without gradient.

        Known beforehand (`batch.reference`), or asked of the companion, or of the model without
        its adapters.
        """
        if batch.reference is not None:
            return batch.reference
        if self.companion is not None:
            with torch.no_grad():
                return measure(self.companion, batch)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), lora.disabled(self.model):
                return measure(self, batch)
        finally:
            self.model.train(was_training)


def _inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    is_encoder = model.config.model_type in heads.ENCODERS
    tells_texts_apart = is_encoder and model.config.type_vocab_size > 1
    segments = {"token_type_ids": batch.segments[None]} if tells_texts_apart else {}
    return segments | {
        "input_ids": batch.ids[None],
        "position_ids": batch.positions[None] + heads.first_position(model),
        "use_cache": False,
        "bounds": batch.bounds,
        "cu_seqlens": batch.cu_seqlens,
        "max_seqlen": batch.max_seqlen,
    }


@contextmanager
def _noise(model: PreTrainedModel, batch: Batch, alpha: float) -> Generator[None]:
    """Uniform noise on the embeddings, as strong as alpha / sqrt(L D) for a document of L tokens.

    Source: Jain et al. 2023, arXiv:2310.05914, algorithm 1.
    """
    if not alpha:
        yield
        return
    lengths = batch.cu_seqlens.diff()

    def add(_: object, __: object, embedded: Tensor) -> Tensor:
        strength = alpha / (lengths * embedded.shape[-1]).float().sqrt()
        strength = strength.repeat_interleave(lengths)[None, :, None].to(embedded.dtype)
        return embedded + (torch.rand_like(embedded) * 2 - 1) * strength

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the model attend within documents, by transformers' attention interface."""
    attention.register()
    model.set_attn_implementation(attention.NAME)


@torch.no_grad()
def packed_nll(
    model: PreTrainedModel, rows: Iterable[Sequence[Unit]], *, autocast: torch.dtype | None = None
) -> tuple[float, float]:
    """Total loss of packed units without gradients.

    Args:
        model: a model that uses packed attention.
        rows: the units of each packed row.
        autocast: compute type, where the weights are kept in a wider one.

    Returns:
        The weighted sum of -log p over labelled tokens in nats, and the sum of their weights.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = weight = 0.0
    for units in rows:
        batch = collate(units, device, Step(label_weight(units), len(units)))
        if not len(batch.targets):
            continue
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            nll = View(model).token_nll(batch)
        total += float((nll.double() * batch.weights).sum())
        weight += float(batch.weights.double().sum())
    model.train(was_training)
    return total, weight
