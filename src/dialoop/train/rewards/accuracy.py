"""Accuracy: the answer is the one of the record's `solution`, as text or as a number."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.train.rewards import Reward

if TYPE_CHECKING:
    from dialoop.train.rewards import Answered

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+(?:[eE][-+]?\d+)?")


class Accuracy(Reward, frozen=True):
    """1 for the right answer, 0 for any other."""

    kind: Literal["accuracy"] = "accuracy"
    column: str = "solution"
    """Column with the right answer; `solution` may be the record's own last answer."""
    match: Literal["auto", "text", "number"] = "auto"
    """`number` compares the last numbers, `text` the texts without case and outer space; `auto`
    takes numbers where the solution is one."""
    pattern: str | None = None
    """Regular expression whose first group (or whole match) is the answer within the text, the
    last one found: `<answer>(.*?)</answer>`, `\\\\boxed\\{(.*?)\\}`."""

    @override
    def score(self, answer: Answered) -> float:
        """1 or 0."""
        solution = answer.column(self.column)
        if solution is None:
            raise UserError(
                f"reward accuracy: the record has no column `{self.column}`",
                hint="name the column with the right answer as `column`",
            )
        given, wanted = self._given(answer.text), str(solution)
        if self.match == "number" or (self.match == "auto" and _NUMBER.fullmatch(wanted.strip())):
            one, other = _last_number(given), _last_number(wanted)
            return float(None not in (one, other) and math.isclose(one, other, rel_tol=1e-6))  # pyright: ignore[reportArgumentType]
        return float(given.strip().casefold() == wanted.strip().casefold())

    def _given(self, text: str) -> str:
        if self.pattern is None:
            return text
        found = list(re.finditer(self.pattern, text, re.DOTALL))
        return (found[-1][1] if found[-1].re.groups else found[-1][0]) if found else ""


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
