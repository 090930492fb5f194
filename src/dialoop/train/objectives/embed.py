"""Embeddings: texts that belong together get near vectors.

Sources: InfoNCE, van den Oord et al. 2018, arXiv:1807.03748, eq. 4; the whole step at once by a
gradient cache, Gao et al. 2021, arXiv:2101.06983, section 3; false negatives, Zhang et al. 2025,
arXiv:2506.05176, section 3.1; CoSENT, Su 2022, kexue.fm/archives/8847, eq. 4; Matryoshka, Kusupati
et al. 2022, arXiv:2205.13147, eq. 1.

The survey gives the vectors of the whole step without gradient; a step of one micro-batch needs
none. Each micro-batch puts its own ones, with gradient, in their place and computes the loss of the
whole step; the gradients of the micro-batches then sum to that of the step. Its value counts by the
micro-batch's share of the units, so that the values sum to it, too.

S is the texts of the step, U its units, P its passages, D the width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.data.units import searched_units
from dialoop.models import embeddings
from dialoop.train.objectives import Objective, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.models.heads import Head
    from dialoop.train.batch import Batch
    from dialoop.train.view import View

SCORED = frozenset({"cosent", "cosine"})


class Embed(Objective, frozen=True):
    """Bring queries and their passages together, and other passages away."""

    kind: Literal["embed"] = "embed"
    loss_type: Literal["infonce", "cosent", "cosine"] = "infonce"
    """`infonce` takes queries with passages; pairs with a score are ranked by `cosent`, or matched
    by `cosine`."""
    temperature: PositiveFloat = 0.05
    """Similarities are divided by it; 0.01 to 0.1 is usual. Not for cosine."""
    in_batch: bool = True
    """Take the passages of all other queries of the step for negatives, too."""
    false_negative_margin: float | None = Field(default=None, ge=0)
    """Leave out negatives that are nearer than the positive by more than this; 0.1 is usual."""
    num_negatives: int = Field(default=7, ge=0)
    """Negative passages of a query that are used, the first ones."""
    matryoshka_dims: list[PositiveInt] = Field(default=[])
    """Widths at which the cut vector must be good, too; name the full width, if it shall count."""
    pooling: Literal["auto", "last", "mean", "cls"] = "auto"
    """How token states become one vector; `auto` takes what the checkpoint says, else the mean for
    encoders and the last token for decoders."""
    instruction: str = ""
    """Text before every query, such as `Instruct: find the answer\\nQuery: `."""

    accepts: ClassVar = frozenset({"retrieval"})
    num_rows: ClassVar = 0
    sees_itself: ClassVar = True

    @model_validator(mode="after")
    def _refuse_unused(self) -> Self:
        if self.loss_type in SCORED and (self.false_negative_margin is not None):
            raise ValueError("false_negative_margin is for loss_type infonce")
        if not self.in_batch and not self.num_negatives:
            raise ValueError("in_batch: without it a query needs num_negatives above 0")
        return self

    @property
    @override
    def surveys(self) -> bool:
        """All texts of the step meet."""
        return True

    @property
    @override
    def head(self) -> Head:
        """Hidden states."""
        return "none"

    @override
    def settled(self, samples: Iterable[Sample], folder: Path) -> Self:
        """With the pooling of the checkpoint."""
        del samples
        if self.pooling != "auto":
            return self
        return self.model_copy(update={"pooling": embeddings.pooling_of(folder)})

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """A query with a positive and negatives, or two texts and their score."""
        return searched_units(
            sample,
            template,
            instruction=self.instruction,
            num_negatives=self.num_negatives,
            scored=self.loss_type in SCORED,
        )

    @property
    @override
    def encoding(self) -> str:
        """What decides the texts."""
        scored = self.loss_type in SCORED
        return f"{self.kind} {scored} {self.num_negatives} {self.instruction!r}"

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Check the widths."""
        del seed
        width = model.config.hidden_size
        if any(dim > width for dim in self.matryoshka_dims):
            raise UserError(
                f"objective.matryoshka_dims: {max(self.matryoshka_dims)} is above the model's"
                f" width {width}",
                hint=f"use {width} or less",
            )

    @override
    def describe(self, model: PreTrainedModel, folder: Path, max_length: int) -> None:
        """Write what sentence-transformers reads."""
        embeddings.write(
            folder,
            pooling=self._pooling,
            width=model.config.hidden_size,
            max_length=max_length,
            query=self.instruction,
        )

    @override
    def survey(self, view: View, batch: Batch) -> Tensor:
        """(S, D + 4) the vectors, and what the loss must know of their texts."""
        return _Texts.of(batch, view.pooled(batch, self._pooling)).packed()

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """This micro-batch's share of the whole step's loss."""
        import torch

        own = view.pooled(batch, self._pooling)  # (S of this micro-batch, D)
        if batch.step.surveyed is None:  # this micro-batch is the whole step
            texts = _Texts.of(batch, own)
        else:
            texts = _Texts.unpacked(batch.step.surveyed).with_own(own, batch.place)
        dims = self.matryoshka_dims or [own.shape[1]]
        with torch.autocast(own.device.type, enabled=False):
            total = torch.stack([self._total(texts.cut(dim)) for dim in dims]).sum()
        share = batch.num_units / batch.step.num_units
        value = total + (total * (share - 1)).detach()
        return Outcome(value, {"positive_similarity": share * texts.positive_similarity()})

    @property
    def _pooling(self) -> Literal["last", "mean", "cls"]:
        assert self.pooling != "auto", "settled before training"  # noqa: S101
        return self.pooling

    def _total(self, texts: _Texts) -> Tensor:
        """() the loss of the whole step."""
        match self.loss_type:
            case "infonce":
                return self._info_nce(texts)
            case "cosent":
                return self._cosent(texts)
            case "cosine":
                return ((texts.pair_similarities() - texts.values) ** 2).mean()

    def _info_nce(self, texts: _Texts) -> Tensor:
        import torch
        import torch.nn.functional as F

        similarity = texts.queries @ texts.passages.T  # (U, P)
        target = (texts.ranks[texts.ranks > 0] == 1).nonzero()[:, 0]  # (U,)
        positive = similarity.gather(1, target[:, None])  # (U, 1)
        left_out = texts.copies(target)
        if not self.in_batch:
            owners = texts.units[texts.ranks > 0]  # (P,)
            left_out |= owners[None] != torch.arange(len(target), device=owners.device)[:, None]
        if self.false_negative_margin is not None:
            left_out |= similarity > positive + self.false_negative_margin
        left_out.scatter_(1, target[:, None], value=False)
        logits = similarity.masked_fill(left_out, -float("inf")) / self.temperature
        return F.cross_entropy(logits, target)

    def _cosent(self, texts: _Texts) -> Tensor:
        import torch

        similarity, values = texts.pair_similarities() / self.temperature, texts.values  # (U,)
        gaps = similarity[:, None] - similarity[None]  # (U, U)
        wrong = gaps[values[:, None] < values[None]]
        return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(0)


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of a step, unit by unit: a query, its positive, its negatives."""

    vectors: Tensor
    """(S, D) float32."""
    ranks: Tensor
    """(S,) place in the unit: 0 is the query, 1 the positive."""
    scores: Tensor
    """(S,) the value of the text's unit."""
    digests: Tensor
    """(S, 2) the same for the same text."""

    @classmethod
    def of(cls, batch: Batch, vectors: Tensor) -> _Texts:
        return cls(vectors, batch.ranks, batch.values[batch.units], _digests(batch))

    def packed(self) -> Tensor:
        """(S, D + 4) float32."""
        import torch

        facts = torch.stack([self.ranks.float(), self.scores], 1)
        return torch.cat([self.vectors, facts, self.digests], 1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> _Texts:
        vectors, facts, digests = packed.split([packed.shape[1] - 4, 2, 2], 1)
        return cls(vectors, facts[:, 0].long(), facts[:, 1], digests)

    def with_own(self, own: Tensor, place: int) -> _Texts:
        """With the vectors of a micro-batch that begins at `place` put in."""
        import torch

        before, after = self.vectors[:place], self.vectors[place + len(own) :]
        return replace(self, vectors=torch.cat([before, own, after]))

    def cut(self, dim: int) -> _Texts:
        """The first numbers of each vector, brought to length 1."""
        import torch.nn.functional as F

        return replace(self, vectors=F.normalize(self.vectors[:, :dim], dim=1))

    @property
    def units(self) -> Tensor:
        """(S,) the unit of each text."""
        return (self.ranks == 0).cumsum(0) - 1

    @property
    def values(self) -> Tensor:
        """(U,)."""
        return self.scores[self.ranks == 0]

    @property
    def queries(self) -> Tensor:
        """(U, D)."""
        return self.vectors[self.ranks == 0]

    @property
    def passages(self) -> Tensor:
        """(P, D), positives and negatives."""
        return self.vectors[self.ranks > 0]

    def pair_similarities(self) -> Tensor:
        """(U,) of queries and their positives, once the vectors have length 1."""
        return (self.queries * self.vectors[self.ranks == 1]).sum(1)

    def positive_similarity(self) -> Tensor:
        """() the mean cosine of queries and their positives, without gradient."""
        return self.cut(self.vectors.shape[1]).pair_similarities().mean().detach()

    def copies(self, target: Tensor) -> Tensor:
        """(U, P) whether a passage is a positive of the same query: a copy, or that of its twin."""
        queries = self.digests[self.ranks == 0]  # (U, 2)
        passages = self.digests[self.ranks > 0]  # (P, 2)
        positives = passages[target]  # (U, 2)
        is_copy = (positives[:, None] == passages[None]).all(-1)  # (U, P)
        is_twin = (queries[:, None] == queries[None]).all(-1)  # (U, U)
        return (is_twin.float() @ is_copy.float()) > 0


def _digests(batch: Batch) -> Tensor:
    """(S, 2) float32 whole numbers below 2^24: two sums of the ids, weighted by their places."""
    import torch

    prime = 2**24 - 3
    out: list[Tensor] = []
    for factor in (1103515245, 69621):
        weights = (batch.positions + 1) * factor % prime
        zero = torch.zeros(batch.num_documents, dtype=torch.int64, device=batch.ids.device)
        sums = zero.index_add(0, batch.owners, (batch.ids + 1) * weights % prime)
        out.append((sums % prime).float())
    return torch.stack(out, 1)
