"""Pre-training: next-token cross-entropy on every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.data.units import whole_text_units
from dialoop.train.objectives import Objective, Outcome

if TYPE_CHECKING:
    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Pt(Objective, frozen=True):
    """Continue the text."""

    kind: Literal["pt"] = "pt"

    accepts: ClassVar = frozenset({"dialogue", "text"})

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """A text, or a dialogue as the template writes it."""
        return whole_text_units(sample, template)

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the tokens of the whole step."""
        return Outcome(batch.token_mean(view.token_nll(batch)))
