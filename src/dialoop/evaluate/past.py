"""Earlier evaluations, read from the folders of their reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dialoop.core.errors import UserError
from dialoop.evaluate.result import EvaluateResult, PastRun

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dialoop.evaluate.result import Checkpoint

REPORT = "report.json"


def checkpoint(reference: str, url: str | None) -> Checkpoint | None:
    """What an earlier evaluation found on its model; None where this is no folder of a report.

    Args:
        reference: as the user wrote it.
        url: where it is asked; a model's name at an endpoint is no folder.

    Raises:
        UserError: the report is damaged.
    """
    if url or not (Path(reference) / REPORT).is_file():
        return None
    return _read(Path(reference)).model.model_copy(update={"name": reference})


def history(folders: Iterable[Path]) -> tuple[PastRun, ...]:
    """The scores of earlier evaluations, oldest first.

    Raises:
        UserError: a folder holds no report, or a damaged one.
    """
    runs: list[PastRun] = []
    for folder in folders:
        found = _read(folder)
        scores = {
            f"{part.task}: {score.name}": score.value
            for part in found.model.measured
            for score in part.scores
        }
        runs.append(PastRun(name=str(folder), made=found.made, scores=scores))
    return tuple(sorted(runs, key=lambda run: run.made))


def _read(folder: Path) -> EvaluateResult:
    try:
        text = (folder / REPORT).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"`{folder}` holds no {REPORT}", hint="give the `--output` folder of an evaluation"
        ) from error
    try:
        return EvaluateResult.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"`{folder / REPORT}` is no report of this version "
            f"({error.error_count()} fields differ)",
            hint="evaluate once more",
        ) from error
