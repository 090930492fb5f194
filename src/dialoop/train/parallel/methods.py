"""The forms of sequence parallelism by name, and which of them suits a model.

Bytes that a rank receives in a layer, for T tokens of H query and K key/value heads, over n ranks:
gathered keys 2 K T (n-1)/n; Ulysses (2 H + 2 max(K, n)) T (n-1)/n^2. The first is less where
key/value heads are few, and needs room for the keys of the whole row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from dialoop.core.errors import UserError
from dialoop.train.parallel.sequence.gather_kv import GatherKv
from dialoop.train.parallel.sequence.ring import Ring
from dialoop.train.parallel.sequence.ulysses import Ulysses
from dialoop.train.parallel.sequence.usp import Usp

if TYPE_CHECKING:
    from dialoop.train.parallel.sequence import SequenceMethod

Kind = Literal["gather_kv", "ulysses", "ring", "usp"]
METHODS: dict[Kind, type[SequenceMethod]] = {
    "gather_kv": GatherKv,
    "ulysses": Ulysses,
    "ring": Ring,
    "usp": Usp,
}
SHARE_FOR_KEYS = 0.05
"""Of a device's memory; gathered keys and values, their copy in order and their gradients."""


def choose(size: int, num_heads: int, num_kv_heads: int, row_bytes: int, memory_bytes: int) -> Kind:
    """The form that moves least and fits.

    Args:
        size: ranks that share a row.
        num_heads: H.
        num_kv_heads: K.
        row_bytes: of the keys and values of a whole row in one layer.
        memory_bytes: of a device.
    """
    gathered = 2 * num_kv_heads
    exchanged = (2 * num_heads + 2 * max(num_kv_heads, size)) / size
    can_share = num_heads >= size
    fits = 4 * row_bytes <= SHARE_FOR_KEYS * memory_bytes
    if fits and (gathered <= exchanged or not can_share):
        return "gather_kv"
    if can_share and (fits or num_kv_heads >= size):
        return "ulysses"
    return "usp" if can_share and 1 < ulysses_size("usp", size, num_heads) < size else "ring"


def ulysses_size(kind: Kind, size: int, num_heads: int) -> int:
    """Ranks that share heads; the rest of `size` is the ring.

    Raises:
        UserError: that many ranks, or heads, cannot be shared out so.
    """
    if kind == "ulysses" and num_heads < size:
        raise UserError(
            f"sequence_method ulysses over {size} ranks needs as many query heads, and the model"
            f" has {num_heads}",
            hint="use --sequence_method gather_kv or ring",
        )
    if kind == "usp":
        near = [n for n in range(2, math.isqrt(size) + 1) if size % n == 0 and n <= num_heads]
        if not near:
            raise UserError(
                f"sequence_method usp cannot lay {size} ranks out on two axes",
                hint="use a --sequence_parallel with a divisor, such as 4, or another method",
            )
        return near[-1]
    return size if kind == "ulysses" else 1
