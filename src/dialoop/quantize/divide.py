"""Whether groups divide a layer, and which sizes would."""

from __future__ import annotations

from dialoop.core.errors import UserError

SIZES = (256, 128, 96, 64, 48, 32, 16)


def refuse_indivisible(name: str, width: int, group: int) -> None:
    """Raise where groups do not divide a layer's inputs.

    Args:
        name: of the layer.
        width: its inputs.
        group: the size that was asked for.

    Raises:
        UserError: names sizes that would do.
    """
    if width % group == 0:
        return
    sizes = [str(size) for size in SIZES if width % size == 0]
    use = f"use --method.group_size {' or '.join(sizes)}, or " if sizes else ""
    raise UserError(
        f"groups of {group} do not divide the {width} inputs of `{name}`",
        hint=f"{use}leave the layer as it is by --keep '{name}'",
    )
