"""Every parameter moves, in float32; the forward pass computes in the job's type by autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from dialoop.train.vocabulary import Vocabulary
from dialoop.train.whole_model import WholeModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts


class Full(Vocabulary, WholeModel, frozen=True):
    """Train every parameter."""

    kind: Literal["full"] = "full"

    default_lr: ClassVar[float] = 1e-5

    @override
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Widen to float32 and let everything move."""
        self.add_rows(model, seed)
        model.float().requires_grad_(requires_grad=True)

    @property
    @override
    def start(self) -> str:
        return f"{super().start} {self.new_tokens} {self.new_words}"

    @override
    def num_trained(self, facts: ModelFacts) -> int:
        """All of them, and the rows added."""
        return super().num_trained(facts) + self.num_new(facts)
