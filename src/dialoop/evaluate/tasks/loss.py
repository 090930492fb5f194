"""Held-out loss and perplexity over the assistant's tokens, packed as in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.evaluate.result import Measured, Observed, Score
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from dialoop.evaluate.tasks import Material, Subject


class Loss(Task, frozen=True):
    """How well the checkpoint predicts the answers that people wrote."""

    kind: Literal["loss"] = "loss"
    row_tokens: int = Field(default=2048, ge=16)
    """Tokens that are computed together; fewer take less memory, the result is the same."""

    runs_unasked: ClassVar = True

    @override
    def lacks(self, material: Material) -> str | None:
        """A data set."""
        return None if material.samples is not None else "dataset"

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Mean of -log p over the target tokens of all dialogues, in nats."""
        assert material.samples is not None  # noqa: S101  `lacks` was asked
        found = subject.held_out(material.samples, self.row_tokens)
        rows = [
            Observed(id=f"row {number}", value=nats, weight=weight)
            for number, (nats, weight) in enumerate(found.rows, 1)
        ]
        counts = {
            "target tokens": found.targets,
            "rows scored": found.num_rows,
            "records left out": found.num_left_out,
        }
        return Measured(
            task=self.title,
            scores=(
                Score.of("loss", rows, unit="nats per target token", better="lower"),
                Score.of("perplexity", rows, better="lower", form="exp"),
                *(
                    Score(name=name, value=value, unit="", better="neither")
                    for name, value in counts.items()
                ),
            ),
        )
