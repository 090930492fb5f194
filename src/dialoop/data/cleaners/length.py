"""Length bounds, in characters and in tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.data.cleaners import Cleaner, Verdict, whole_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.data.sample import Sample


class Length(Cleaner):
    """Drops what is too short or too long.

    Args:
        unit: `characters` or `tokens`, for the report.
        measure: the length of a text in that unit.
        least: smallest length that stays; None for no bound.
        most: greatest length that stays; None for no bound.
    """

    def __init__(
        self, unit: str, measure: Callable[[str], int], least: int | None, most: int | None
    ) -> None:
        self._unit, self._measure, self._least, self._most = unit, measure, least, most

    def look(self, sample: Sample) -> Verdict:
        """Measure all turns together."""
        length = self._measure(whole_text(sample))
        if self._least is not None and length < self._least:
            reason = f"shorter than {self._least} {self._unit}"
            return Verdict(sample, "filtered", reason, str(length))
        if self._most is not None and length > self._most:
            reason = f"longer than {self._most} {self._unit}"
            return Verdict(sample, "filtered", reason, str(length))
        return Verdict(sample)
