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

from dialoop.core.errors import UserError
from dialoop.models import attention, heads, lora
from dialoop.train.batch import Step, collate, label_weight
from dialoop.train.kernels.cross_entropy import token_nll

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.data.units import Unit
    from dialoop.models.embeddings import Pooling
    from dialoop.train.batch import Batch
    from dialoop.train.parallel.fsdp import Root
    from dialoop.train.parallel.shared_row import SharedRow, SharedRows

PLAIN_HEADS = frozenset({"llama", "internlm3", "qwen2", "qwen3", "mistral", "smollm3"})
"""Model types whose logits are hidden states times the head, and nothing else."""


@dataclass(frozen=True, slots=True)
class View:
    """A model, as objectives see it."""

    model: PreTrainedModel
    rows: SharedRows | None = None
    """How several ranks share a packed row; None where this one computes it alone."""
    root: Root | None = None
    """What every question goes through where the parameters are in shards."""
    companion: View | None = None
    """A second, frozen model: a teacher, or the policy's start where no adapter gives it."""

    @property
    def device(self) -> torch.device:
        """Where it computes, which is not where shards lie that are offloaded."""
        return next(self.model.parameters()).device if self.root is None else self.root.device

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
        shared = None if self.rows is None else self.rows.row(batch)
        with _noise(self.model, batch, noise, shared):
            return self._ask(self._token_nll, batch, smoothing, temperature, shared)

    def _token_nll(
        self, batch: Batch, smoothing: float, temperature: float, shared: SharedRow | None
    ) -> Tensor:
        rows, targets = batch.rows, batch.targets
        if shared is not None:
            which, rows = shared.labelled
            targets = targets[which]
        inputs = _inputs(self.model, batch, shared)
        if self.model.config.model_type in PLAIN_HEADS:
            states = self.model.get_decoder()(**inputs).last_hidden_state[0]
            wanted = states[rows] / temperature  # (N, D)
            head: Any = self.model.get_output_embeddings()
            nll = token_nll(wanted, head.weight.to(wanted.dtype), targets, smoothing=smoothing)
        else:
            logits = self.model(**inputs, logits_to_keep=rows).logits[0].float()  # (N, V)
            nll = F.cross_entropy(
                logits / temperature, targets, reduction="none", label_smoothing=smoothing
            )
        return nll if shared is None else shared.all_labelled(nll)

    def token_logps(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log p of each labelled token: (N,) float32."""
        return -self.token_nll(batch, temperature=temperature)

    def token_logits(self, batch: Batch) -> Callable[[slice], Tensor]:
        """Gives the (n, V) float32 logits of a part of the N labelled tokens."""
        if self.model.config.model_type not in PLAIN_HEADS:
            if self.rows is not None:
                raise UserError(
                    f"sequence_parallel does not know the head of {self.model.config.model_type},"
                    " of which whole distributions are wanted",
                    hint="use --sequence_parallel 1",
                )
            logits = self._ask(self._logits, batch, batch.rows)  # (N, V)
            return lambda part: logits[part].float()
        wanted = self.hidden(batch)[batch.rows]  # (N, D)
        return lambda part: self._ask(self._plain_logits, wanted[part])

    def _plain_logits(self, states: Tensor) -> Tensor:
        head: Any = self.model.get_output_embeddings()
        return (states @ head.weight.to(states.dtype).T).float()

    def sequence_logps(self, batch: Batch) -> Tensor:
        """Log p of the labelled tokens of each document, weighted and summed: (S,) float32."""
        return batch.document_sum(self.token_logps(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """(T, D) the states that the head reads."""
        shared = None if self.rows is None else self.rows.row(batch)
        return self._ask(self._hidden, batch, shared)

    def _hidden(self, batch: Batch, shared: SharedRow | None) -> Tensor:
        body: Any = self.model.base_model
        states = body(**_inputs(self.model, batch, shared)).last_hidden_state[0]
        return states if shared is None else shared.all_tokens(states)

    def _ask(self, question: Callable[..., Tensor], *about: object) -> Tensor:
        return question(*about) if self.root is None else self.root.ask(question, *about)

    def scores(self, batch: Batch) -> Tensor:
        """(S, L) float32, the scores of each document by the model's own head."""
        shared = None if self.rows is None else self.rows.row(batch)
        return self._ask(self._scores, batch, shared)

    def _scores(self, batch: Batch, shared: SharedRow | None) -> Tensor:
        model: Any = self.model
        hidden = self._hidden(batch, shared)  # (T, D)
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
        if self.rows is not None:
            raise UserError(
                "sequence_parallel does not know scores read from the logits of choices",
                hint="use --sequence_parallel 1",
            )
        places = batch.rows.view(-1, num)[:, 0]  # (S,)
        logits = self._ask(self._logits, batch, places)  # (S, V)
        return logits.float().gather(1, batch.targets.view(-1, num))

    def _logits(self, batch: Batch, places: Tensor) -> Tensor:
        return self.model(**_inputs(self.model, batch), logits_to_keep=places).logits[0]

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


def _inputs(
    model: PreTrainedModel, batch: Batch, shared: SharedRow | None = None
) -> dict[str, Any]:
    is_encoder = model.config.model_type in heads.ENCODERS
    tells_texts_apart = is_encoder and model.config.type_vocab_size > 1
    segments = {"token_type_ids": batch.segments[None]} if tells_texts_apart else {}
    ids, positions = batch.ids, batch.positions
    if shared is not None:
        ids, positions = ids[shared.tokens], positions[shared.tokens]
    return segments | {
        "input_ids": ids[None],
        "position_ids": positions[None] + heads.first_position(model),
        "use_cache": False,
        "bounds": batch.bounds,
        "cu_seqlens": batch.cu_seqlens,
        "max_seqlen": batch.max_seqlen,
        "shared": None if shared is None else shared.attend,
    }


@contextmanager
def _noise(
    model: PreTrainedModel, batch: Batch, alpha: float, shared: SharedRow | None
) -> Generator[None]:
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
        like = {"dtype": embedded.dtype, "device": embedded.device}
        noise = torch.rand(1, batch.num_tokens, embedded.shape[-1], **like) * 2 - 1
        noise = noise * strength  # (1, T, D), the same on all ranks of the row
        return embedded + (noise if shared is None else noise[:, shared.tokens])

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
def row_nll(model: PreTrainedModel, units: Sequence[Unit]) -> list[tuple[float, float]]:
    """The loss of each row of some units, computed as one packed row without gradients.

    Args:
        model: a model that uses packed attention, in evaluation mode.
        units: with a labelled token at least.

    Returns:
        By row, the weighted sum of -log p over labelled tokens in nats, and the sum of weights.
    """
    device = next(model.parameters()).device
    batch = collate(units, device, Step(label_weight(units), len(units)))
    nll = View(model).token_nll(batch).double() * batch.weights
    owners = batch.owners[batch.rows]
    zero = nll.new_zeros(batch.num_documents)
    sums = zero.index_add(0, owners, nll).tolist()
    weights = zero.index_add(0, owners, batch.weights.double()).tolist()
    return list(zip(sums, weights, strict=True))


@torch.no_grad()
def packed_nll(model: PreTrainedModel, rows: Iterable[Sequence[Unit]]) -> tuple[float, float]:
    """Total loss of packed units without gradients.

    Args:
        model: a model that uses packed attention.
        rows: the units of each packed row.

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
        nll = View(model).token_nll(batch)
        total += float((nll.double() * batch.weights).sum())
        weight += float(batch.weights.double().sum())
    model.train(was_training)
    return total, weight
