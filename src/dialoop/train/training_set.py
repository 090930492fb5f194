"""The units that a loop trains on, by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dialoop.data.sample import Sample
    from dialoop.data.tokenize import TokenRows
    from dialoop.data.units import Unit
    from dialoop.train.online import Made
    from dialoop.train.reference import References


class Samples(Protocol):
    """Samples by the number of their unit."""

    def __getitem__(self, number: int) -> Sample:
        """One of them."""
        ...


class TrainingSet:
    """Units by number, and what the reference model gave them.

    Args:
        rows: the tokenised data, or units that a rollout made.
        references: of the units' rows, where the objective needs one and it was computed before.
        survey_references: the same of what is surveyed.
        samples: the sample of each unit, where rewards look at it.
    """

    def __init__(
        self,
        rows: TokenRows | Made,
        references: References | None = None,
        survey_references: References | None = None,
        samples: Samples | None = None,
    ) -> None:
        self._rows = rows
        self.lengths = rows.unit_lengths
        """(u,) tokens of each unit."""
        self.references, self.survey_references = references, survey_references
        self._samples = samples

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Unit:
        return self._rows.unit(number)

    def sample(self, number: int) -> Sample:
        """The sample of a unit."""
        assert self._samples is not None, "asked only where answers are rewarded"  # noqa: S101
        return self._samples[number]
