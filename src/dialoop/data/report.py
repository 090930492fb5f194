"""The report of reading: counts that add up, by file, layout and reason, with examples."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, Field

NUM_EXAMPLES = 3
NO_LAYOUT = "no known layout"
"""The reason that naming columns may help with."""
Outcome = Literal["rejected", "duplicates", "filtered"]


class Example(BaseModel, frozen=True):
    """One record that was left out or changed."""

    file: str
    line: int
    detail: str = ""
    excerpt: str = ""


class Reason(BaseModel, frozen=True):
    """Why records were left out or changed."""

    reason: str
    outcome: Literal["rejected", "duplicates", "filtered", "changed"]
    count: int
    examples: list[Example]


class FileCounts(BaseModel, frozen=True):
    """What one file gave."""

    file: str
    read: int = 0
    kept: int = 0
    rejected: int = 0
    duplicates: int = 0
    filtered: int = 0


class DataReport(BaseModel, frozen=True):
    """What reading came to; read = kept + rejected + duplicates + filtered."""

    read: int = 0
    kept: int = 0
    rejected: int = 0
    duplicates: int = 0
    filtered: int = 0
    files: list[FileCounts] = Field(default=[])
    skipped: dict[str, str] = Field(default={})
    """Files without records, and why."""
    layouts: dict[str, int] = Field(default={})
    kinds: dict[str, int] = Field(default={})
    """Kept records by what they can train."""
    reasons: list[Reason] = Field(default=[])

    def lines(self) -> list[str]:
        """What a person reads."""
        out = [
            f"{self.read} read = {self.kept} kept + {self.rejected} rejected"
            f" + {self.duplicates} duplicates + {self.filtered} filtered"
        ]
        if self.layouts:
            out.append("layouts: " + ", ".join(f"{k} {v}" for k, v in self.layouts.items()))
        if self.kinds:
            out.append("kinds: " + ", ".join(f"{k} {v}" for k, v in self.kinds.items()))
        for item in self.reasons:
            out.append(f"{item.outcome}: {item.reason}: {item.count}")
            out += [
                f"  {e.file}:{e.line}" + (f" ({e.detail[:120]})" if e.detail else "")
                for e in item.examples
            ]
        if any(item.reason == NO_LAYOUT for item in self.reasons):
            out.append("say what its columns are: --columns THEIR_NAME=query OTHER_NAME=response")
        out += [f"skipped: {file}: {why}" for file, why in list(self.skipped.items())[:20]]
        return out


class Tally:
    """Counts while reading; `report()` freezes them."""

    def __init__(self) -> None:
        self._files: dict[str, Counter[str]] = {}
        self._reasons: dict[tuple[str, str], list[Example]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self.layouts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}

    def count(self, file: str, outcome: str) -> None:
        """One record of a file came to this."""
        self._files.setdefault(file, Counter())[outcome] += 1

    def reason(self, outcome: str, reason: str, example: Example) -> None:
        """One record was left out or changed for a reason."""
        key = (outcome, reason)
        self._counts[key] += 1
        examples = self._reasons.setdefault(key, [])
        if len(examples) < NUM_EXAMPLES:
            short = example.model_copy(update={"excerpt": example.excerpt[:200]})
            examples.append(short)

    def report(self) -> DataReport:
        """The counts as they stand."""
        total: Counter[str] = Counter()
        for counts in self._files.values():
            total.update(counts)
        files = [
            FileCounts(file=name, read=sum(counts.values()), **counts)
            for name, counts in self._files.items()
        ]
        reasons = [
            Reason.model_validate(
                {"reason": key[1], "outcome": key[0], "count": n, "examples": self._reasons[key]}
            )
            for key, n in self._counts.most_common()
        ]
        return DataReport(
            read=sum(total.values()),
            files=files,
            skipped=self.skipped,
            layouts=dict(self.layouts.most_common()),
            kinds=dict(self.kinds.most_common()),
            reasons=reasons,
            **total,
        )
