"""The example company's files: in the checkout, or in the installed package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.core.errors import MachineError, UserError

if TYPE_CHECKING:
    from dialoop.quickstart.spec import QuickstartJob

_PACKAGE = Path(__file__).parents[1]
PLACES = (_PACKAGE.parents[1] / "examples" / "company", _PACKAGE / "examples" / "company")
"""Of a checkout, and of an installed wheel."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from, measured on and asked."""

    dataset: Path
    held_out: Path
    suite: Path


def find(job: QuickstartJob, places: tuple[Path, ...] = PLACES) -> Material:
    """The files that the job names, and the example company's for the others.

    Raises:
        UserError: a file that the job names is missing.
        MachineError: the example company's files are not installed.
    """
    return Material(
        dataset=_file(job.dataset, "service_desk.jsonl", places),
        held_out=_file(job.held_out, "held_out.jsonl", places),
        suite=_file(job.suite, "questions.yaml", places),
    )


def _file(given: Path | None, name: str, places: tuple[Path, ...]) -> Path:
    if given is not None:
        if not given.is_file():
            raise UserError(f"`{given}` is no file", hint="check the path")
        return given
    for place in places:
        if (place / name).is_file():
            return place / name
    raise MachineError(
        f"the example file `{name}` is not installed",
        hint="install dialoop again, or name files of your own with --dataset, --held_out, --suite",
    )
