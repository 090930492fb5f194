"""Sequence classification: cross-entropy of a text's label."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.data.units import label_of, labelled_unit
from dialoop.train.objectives import Objective, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.models.heads import Head
    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Classify(Objective, frozen=True):
    """Tell which label a text, a pair of texts or a dialogue has."""

    kind: Literal["classify"] = "classify"
    labels: list[str] = Field(default=[])
    """Labels in the order of the model's scores; those of the data, sorted, when left out."""
    column: str = "label"
    """Column that holds the label: a name, a number, or true and false."""

    accepts: ClassVar = frozenset({"dialogue", "text", "prompt", "unpaired", "retrieval"})

    @property
    @override
    def head(self) -> Head:
        """Scores."""
        return "score"

    @property
    @override
    def num_scores(self) -> int:
        """One for each label."""
        return len(self.labels)

    @override
    def settled(self, samples: Iterable[Sample], folder: Path) -> Self:
        """With the labels of the data, where the job names none."""
        del folder
        if self.labels:
            return self
        found = {label for s in samples if (label := label_of(s, self.column)) is not None}
        if len(found) < 2:
            raise UserError(
                f"objective.column: the column `{self.column}` holds"
                f" {len(found) or 'no'} label{'s' * (len(found) != 1)}; two or more are needed",
                hint="name the column that holds the labels",
            )
        return self.model_copy(update={"labels": sorted(found, key=_order)})

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """A text with the place of its label."""
        label = label_of(sample, self.column)
        if label is None:
            raise UserError(f"no label in the column `{self.column}`")
        if label not in self.labels:
            raise UserError(f"the label `{label}` is none of {', '.join(self.labels)}")
        return [labelled_unit(sample, template, float(self.labels.index(label)))]

    @property
    @override
    def encoding(self) -> str:
        """The labels and where they stand."""
        return f"{self.kind} {self.column} {self.labels}"

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Name the labels in the model's config."""
        del seed
        model.config.id2label = dict(enumerate(self.labels))
        model.config.label2id = {label: n for n, label in enumerate(self.labels)}

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the texts of the whole step."""
        import torch.nn.functional as F

        scores, labels = view.scores(batch), batch.values.long()  # (U, L), (U,)
        losses = F.cross_entropy(scores, labels, reduction="none")
        hits = scores.detach().argmax(-1) == labels
        return Outcome(batch.unit_mean(losses), {"accuracy": batch.unit_mean(hits.float())})


def _order(label: str) -> tuple[int, str]:
    """Numbers by size and before names."""
    number = int(label) if label.lstrip("-").isdigit() else 10**9
    return number, label
