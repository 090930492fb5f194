"""Reranker: how well a passage answers a query, both read together.

Sources: pointwise, Nogueira and Cho 2019, arXiv:1901.04085, eq. 1; listwise, Gao, Dai and Callan
2021, arXiv:2101.08751, eq. 4; by the words yes and no, Zhang et al. 2025 (Qwen3-Reranker),
arXiv:2506.05176, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from dialoop.chat.message import message
from dialoop.data.units import ranked_units
from dialoop.train.objectives import Objective, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.chat.message import Message
    from dialoop.chat.template import Row, Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.models.heads import Head
    from dialoop.train.batch import Batch
    from dialoop.train.view import View

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
CHOICES = ("yes", "no")


class Rerank(Objective, frozen=True):
    """Score passages that answer a query above those that do not."""

    kind: Literal["rerank"] = "rerank"
    loss_type: Literal["listwise", "pointwise"] = "listwise"
    """`listwise` compares a query's positive with its negatives; `pointwise` judges each alone."""
    scoring: Literal["head", "generative"] = "head"
    """A new score head on the pair, or the language model's own `yes` against its `no`."""
    num_negatives: int = Field(default=7, ge=0)
    """Negative passages of a query that are used, the first ones."""
    instruction: str = ""
    """What a passage should do, for `generative`; Qwen3-Reranker's own when left out."""
    opening: str = ""
    """Text that begins the answer before yes or no, for `generative`; Qwen3-Reranker has
    `<think>\\n\\n</think>\\n\\n`."""

    accepts: ClassVar = frozenset({"retrieval"})
    num_rows: ClassVar = 0

    @model_validator(mode="after")
    def _refuse_unused(self) -> Self:
        if self.scoring == "head" and (self.instruction or self.opening):
            raise ValueError("instruction and opening are for scoring `generative`")
        if self.loss_type == "listwise" and not self.num_negatives:
            raise ValueError("num_negatives: listwise compares with at least one negative")
        return self

    @property
    @override
    def head(self) -> Head:
        """A score, or the tokens' distribution."""
        return "score" if self.scoring == "head" else "tokens"

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """A query's positive and negatives; or each of them with 1 or 0."""
        listed = self.loss_type == "listwise"

        def write(query: str, passage: str) -> Row:
            if self.scoring == "head":
                return template.framed_row(query, passage)
            return template.choice_row(self._prompt(query, passage), self.opening, CHOICES)

        return ranked_units(sample, write, num_negatives=self.num_negatives, listed=listed)

    @property
    @override
    def encoding(self) -> str:
        """Everything but the loss itself."""
        return f"{self.model_dump_json()}"

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the queries of the whole step, or over their passages."""
        import torch.nn.functional as F

        scores = self._scores(view, batch)  # (S,)
        if self.loss_type == "pointwise":
            losses = F.binary_cross_entropy_with_logits(scores, batch.values, reduction="none")
            hits = (scores.detach() > 0) == (batch.values > 0.5)
        else:
            lists = scores.new_full((batch.num_units, int(batch.ranks.max()) + 1), -float("inf"))
            lists = lists.index_put((batch.units, batch.ranks), scores)  # (U, R)
            losses = lists.logsumexp(1) - lists[:, 0]
            hits = lists.detach().argmax(1) == 0
        return Outcome(batch.unit_mean(losses), {"accuracy": batch.unit_mean(hits.float())})

    def _scores(self, view: View, batch: Batch) -> Tensor:
        """(S,) logits of relevance."""
        if self.scoring == "head":
            return view.scores(batch)[:, 0]
        yes, no = view.choice_logits(batch, len(CHOICES)).unbind(1)
        return yes - no

    def _prompt(self, query: str, passage: str) -> list[Message]:
        asked = f"<Instruct>: {self.instruction or INSTRUCTION}\n<Query>: {query}\n"
        return [message("system", SYSTEM), message("user", f"{asked}<Document>: {passage}")]
