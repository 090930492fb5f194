"""What was read before: keys and values of prompts and answers, for others that begin alike.

One store belongs to one model: the keys and values of an adapter are not those of its base.

H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Layers = list[tuple[Tensor, Tensor]]

MIN_TOKENS = 16
"""Shorter beginnings are read again: that costs no more than finding them."""


class Prefixes:
    """A store of token sequences, the least recently used ones dropped first.

    Args:
        max_tokens: of all that is kept; 0 keeps nothing.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._known: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def find(self, prompt: tuple[int, ...]) -> tuple[int, Layers]:
        """The longest known beginning of a prompt, which leaves its last token to be read.

        Returns:
            Its number of tokens T, and keys and values by layer, (1, H, T, D); 0 and nothing where
            no beginning is known.
        """
        best, found = 0, None
        for ids in self._known:
            num = _num_common(ids, prompt[:-1])
            if num > best:
                best, found = num, ids
        if found is None or best < MIN_TOKENS:
            return 0, []
        self._known.move_to_end(found)
        return best, [(k[:, :, :best], v[:, :, :best]) for k, v in self._known[found]]

    def put(self, ids: tuple[int, ...], layers: Layers) -> None:
        """Keep the keys and values of a sequence, in place of sequences that it begins with."""
        if not MIN_TOKENS <= len(ids) <= self._max_tokens:
            return
        for known in [known for known in self._known if ids[: len(known)] == known]:
            self._drop(known)
        self._known[ids] = layers
        self._num_tokens += len(ids)
        while self._num_tokens > self._max_tokens:
            self._drop(next(iter(self._known)))

    def _drop(self, ids: tuple[int, ...]) -> None:
        del self._known[ids]
        self._num_tokens -= len(ids)


def _num_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the beginning that both share."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    low, high = 0, size  # one[:low] is shared, one[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle
    return low
