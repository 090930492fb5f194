"""Where weights come from: `lineage.json` beside every checkpoint that dialoop writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dialoop.core.files import write_text
from dialoop.models import checkpoint

if TYPE_CHECKING:
    from pathlib import Path

FILE = "lineage.json"


def record(folder: Path, *, base: Path, **facts: Any) -> None:
    """Write which base model the weights in `folder` were made from.

    Args:
        folder: a checkpoint or adapter folder.
        base: the base model's folder.
        facts: whatever else tells how it was made (adapter, data set digests, job).
    """
    described = {"path": str(base), "fingerprint": checkpoint.fingerprint(base)}
    write_text(folder / FILE, json.dumps({"base": described} | facts, indent=2) + "\n")


def base_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the base that was recorded; None where nothing was."""
    if not (folder / FILE).is_file():
        return None
    return checkpoint.read_json(folder / FILE).get("base", {}).get("fingerprint")
