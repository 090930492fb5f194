"""Model families that transformers may not know by itself; one a file, registered publicly.

A family file offers `register()`, which makes transformers' auto classes know the family and may be
called again and again, and `write_remote_code(folder)`, which puts beside a checkpoint what lets
other tools with an older transformers load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.models.families import internlm3

if TYPE_CHECKING:
    from pathlib import Path


def register_all() -> None:
    """Make transformers know every family that dialoop knows."""
    internlm3.register()


def write_remote_code(folder: Path, family: str) -> None:
    """Complete a written checkpoint with the code files of its family, where it has any."""
    if family == internlm3.MODEL_TYPE:
        internlm3.write_remote_code(folder)
