"""Choice: which linear layers are rounded to how many bits, from patterns."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.quantize.methods import Method

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that engines compute as one, so that they must be stored alike."""


def choose(
    names: list[str], keep: list[str], precisions: Mapping[str, int], method: Method
) -> dict[str, int]:
    """Bits of every layer that is rounded, by path.

    Args:
        names: paths of the decoder's linear layers.
        keep: paths and patterns of layers that stay.
        precisions: bits by path or pattern; the last pattern that fits counts.
        method: knows which bits there are.

    Raises:
        UserError: a pattern fits nothing, bits that the method has not, nothing is left, or layers
            that engines fuse would be stored differently.
    """
    kept = {name for pattern in keep for name in _fitting(pattern, names, "keep")}
    bits = {name: method.default_bits for name in names if name not in kept}
    for pattern, number in precisions.items():
        known = tuple(sorted({method.default_bits, *method.other_bits}))
        if number not in known:
            raise UserError(
                f"precisions.{pattern}: {method.kind} has no {number} bits",
                hint=f"use {' or '.join(map(str, known))}"
                + ("" if method.other_bits else ", or --method gptq for mixed precision"),
            )
        fitting = _fitting(pattern, names, "precisions")
        bits |= {name: number for name in fitting if name in bits}
    if not bits:
        raise UserError("keep: every layer is kept, so there is nothing to quantize")
    _refuse_torn(names, bits)
    return bits


def _fitting(pattern: str, names: list[str], field: str) -> list[str]:
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found and not _is_outside(pattern):
        raise UserError(
            f"{field}: no linear layer fits `{pattern}`",
            hint=f"layers are called like `{names[0]}`; `*` stands for anything",
        )
    return found


def _is_outside(pattern: str) -> bool:
    """The head and the embedding, which are kept anyway."""
    return pattern in {"lm_head", "model.embed_tokens", "embed_tokens"}


def _refuse_torn(names: list[str], bits: Mapping[str, int]) -> None:
    known = set(names)
    for name in names:
        stem, _, last = name.rpartition(".")
        for family in FUSED:
            if last != family[0]:
                continue
            members = [f"{stem}.{other}" for other in family if f"{stem}.{other}" in known]
            if len({bits.get(member) for member in members}) > 1:
                raise UserError(
                    f"{', '.join(family)} of `{stem}` would be stored differently, and engines"
                    " compute them as one",
                    hint="name all of them in --keep or --precisions",
                )
