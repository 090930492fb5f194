"""Duplicates: exact ones by hash, near ones by MinHash with banding.

Source: Broder 1997, On the resemblance and containment of documents. Pieces are five characters of
the text without white space; 128 hashes in 32 bands of 4 find candidates, the share of equal
hashes decides.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from dialoop.data.cleaners import Cleaner, Verdict, whole_text

if TYPE_CHECKING:
    from dialoop.data.sample import Sample

PIECE_CHARS = 5
NUM_HASHES, NUM_BANDS = 128, 32


class Exact(Cleaner):
    """Drops a sample whose texts are those of an earlier one."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def look(self, sample: Sample) -> Verdict:
        """Compare with all samples before."""
        key = hashlib.blake2b(_spoken(sample).encode(), digest_size=16).digest()
        if key in self._seen:
            return Verdict(sample, "duplicates", "exact duplicate")
        self._seen.add(key)
        return Verdict(sample)


class Near(Cleaner):
    """Drops a sample that shares most of its pieces with an earlier one.

    Args:
        similarity: least share, 0.5 to 1.
    """

    def __init__(self, similarity: float) -> None:
        rng = np.random.default_rng(1997)
        self._factors = rng.integers(1, 2**63, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)
        self._similarity = similarity
        self._signatures: list[np.ndarray] = []
        self._bands: dict[bytes, list[int]] = {}

    def look(self, sample: Sample) -> Verdict:
        """Compare with the samples before that share a band."""
        signature = self._signature("".join(_spoken(sample).split()))
        bands = [
            bytes([n]) + band.tobytes() for n, band in enumerate(signature.reshape(NUM_BANDS, -1))
        ]
        for other in {n for band in bands for n in self._bands.get(band, ())}:
            share = float(np.mean(self._signatures[other] == signature))
            if share >= self._similarity:
                return Verdict(sample, "duplicates", "near duplicate", f"share {share:.2f}")
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._signatures))
        self._signatures.append(signature)
        return Verdict(sample)

    def _signature(self, text: str) -> np.ndarray:
        """(NUM_HASHES,) uint32: the least of each hash over all pieces of the text."""
        codes = np.array([ord(char) for char in text] or [0], dtype=np.uint64)
        num = max(len(codes) - PIECE_CHARS + 1, 1)
        pieces = np.zeros(num, dtype=np.uint64)
        for n in range(min(PIECE_CHARS, len(codes))):
            pieces = pieces * np.uint64(1_000_003) + codes[n : n + num]
        pieces = np.unique(pieces ^ (pieces >> np.uint64(29)))
        least = [
            ((pieces * factor + offset) >> np.uint64(32)).min()
            for factor, offset in zip(self._factors, self._offsets, strict=True)
        ]
        return np.array(least, dtype=np.uint32)


def _spoken(sample: Sample) -> str:
    roles = "".join(item.role[0] for item in sample.messages)
    calls = "".join(f"{c.name}{c.arguments}" for m in sample.messages for c in m.tool_calls)
    images = "".join(i.source for m in sample.messages for i in m.images)
    return f"{roles}{sample.label}\n{whole_text(sample)}\n{calls}{images}"
