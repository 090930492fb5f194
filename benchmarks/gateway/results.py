"""Figures with what they were measured on, and the bar that they are held to."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dialoop.core.device import cpu_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Result:
    """One figure."""

    name: str
    who: str
    value: float
    unit: str
    conditions: str
    device: str
    date: str
    bar: str = ""
    """What was promised, such as `<= 2`; empty: nothing was."""

    runs: tuple[float, ...] = ()
    """Where the value is a median: of these."""

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is; None without one. NaN meets none."""
        if not self.bar:
            return None
        sign, number = self.bar.split()
        bound = float(number)
        return self.value >= bound if sign == ">=" else self.value <= bound


def result(name: str, who: str, value: float, unit: str, conditions: str, bar: str = "") -> Result:
    """A figure measured here and now."""
    where = f"{cpu_name()}, Python {platform.python_version()}"
    load = f"{conditions}; load average {os.getloadavg()[0]:.1f}"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return Result(name, who, round(value, 4), unit, load, where, today, bar)


def line(found: Result) -> str:
    """A figure for the reader."""
    met = {None: "", True: "  ok", False: "  MISSED"}[found.is_met]
    value = "none" if math.isnan(found.value) else f"{found.value:g}"
    bar = f"  (bar {found.bar})" if found.bar else ""
    why = "" if found.is_met is not False else f"\n{'':16}{found.conditions}"
    return f"{found.who:<16}{found.name:<44}{value:>10} {found.unit}{bar}{met}{why}"


def write(path: Path, results: Iterable[Result]) -> None:
    """Write figures as a JSON list; what is no finite number is null."""
    rows: list[dict[str, object]] = []
    for found in results:
        value = found.value if math.isfinite(found.value) else None
        rows.append(asdict(found) | {"value": value, "is_met": found.is_met})
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
