"""Supervised fine-tuning: next-token cross-entropy on the answers' tokens.

Sources: label smoothing, Szegedy et al. 2016, arXiv:1512.00567, section 7; NEFTune, Jain et al.
2023, arXiv:2310.05914, algorithm 1; DFT, Wu et al. 2025, arXiv:2508.05629, eq. 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.data.units import text_units
from dialoop.train.objectives import Objective, Outcome

if TYPE_CHECKING:
    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample
    from dialoop.data.units import Unit
    from dialoop.train.batch import Batch
    from dialoop.train.view import View


class Sft(Objective, frozen=True):
    """Imitate the answers."""

    kind: Literal["sft"] = "sft"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target's probability that is spread over the whole vocabulary."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Uniform noise on the embeddings while training (NEFTune); 5 to 15 is usual, 0 is none."""
    dft: bool = False
    """Weigh each token by its own probability (dynamic fine-tuning): unlikely answers pull less."""

    accepts: ClassVar = frozenset({"dialogue", "text"})

    @override
    def encode(self, sample: Sample, template: Template) -> list[Unit]:
        """A text, or a dialogue's answers."""
        return text_units(sample, template)

    @override
    def loss(self, view: View, batch: Batch) -> Outcome:
        """Mean over the labelled tokens of the whole step."""
        noise = self.neftune_alpha if view.model.training else 0.0
        nll = view.token_nll(batch, smoothing=self.label_smoothing, noise=noise)
        return Outcome(batch.token_mean(nll * (-nll.detach()).exp() if self.dft else nll))
