"""Templates for checkpoints that carry none, one a file: `TEMPLATE = BuiltIn(...)`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A chat template of our own."""

    name: str
    rank: int
    """The lowest rank that fits is taken."""
    fits: Callable[[str, frozenset[str]], bool]
    """Given the checkpoint's `model_type` and its added tokens: whether this is its form."""
    source: str
    """Jinja."""


def built_ins() -> dict[str, BuiltIn]:
    """Every built-in template by name, best first."""
    found: list[BuiltIn] = [
        importlib.import_module(f"{__name__}.{module.name}").TEMPLATE
        for module in pkgutil.iter_modules(__path__)
    ]
    return {item.name: item for item in sorted(found, key=lambda item: item.rank)}


def choose(model_type: str, added: frozenset[str]) -> BuiltIn:
    """The built-in template for a checkpoint; `plain` fits every one."""
    return next(item for item in built_ins().values() if item.fits(model_type, added))
