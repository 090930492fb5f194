"""Real questions with their answers for retrieval: read, split in three, and found by BM25."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHARES = (0.7, 0.1, 0.2)
"""Of the rows: to learn from, to choose settings on, held out."""
MIN_WORDS = 8
"""Shorter answers of a dialogue could follow nearly anything."""


@dataclass(frozen=True, slots=True)
class Task:
    """Query n is answered by passage n, and is to find it among all passages."""

    queries: list[str]
    passages: list[str]
    learned: np.ndarray
    """Numbers of the rows to learn from."""
    chosen_on: np.ndarray
    """Those that settings are chosen on."""
    held_out: np.ndarray
    """Those that are measured once."""


def medical(path: Path) -> Task:
    """Chinese medical questions (title and text) and advice, each advice once.

    Rows of which question or answer shares half of its four-character pieces with another row's
    stay on one side of the split.
    """
    with path.open(encoding="gb18030", newline="") as file:
        rows = {row["answer"]: row for row in csv.DictReader(file)}
    queries = [f"{row['title']} {row['ask']}" for row in rows.values()]
    passages = list(rows)
    groups = _like(queries, _like(passages, list(range(len(rows)))))
    return Task(queries, passages, *_split(groups))


def dialogues(path: Path) -> Task:
    """English dialogues (MultiWOZ 2.1): the last three turns are the query, what follows answers.

    Up to three answers of a dialogue, each answer once; a dialogue stays on one side of the split.
    """
    with zipfile.ZipFile(path) as archive:
        talks = json.loads(archive.read(archive.namelist()[0])).values()
    random = np.random.default_rng(0)
    found: dict[str, tuple[str, int]] = {}
    for number, talk in enumerate(talks):
        turns = [" ".join(turn["text"].split()) for turn in talk["log"]]
        for place in random.permutation(np.arange(3, len(turns), 2))[:3]:
            if len(turns[place].split()) >= MIN_WORDS:
                found[turns[place]] = (" / ".join(turns[place - 3 : place]), number)
    queries = [query for query, _ in found.values()]
    return Task(queries, list(found), *_split([number for _, number in found.values()]))


READERS: dict[str, Callable[[Path], Task]] = {"medical": medical, "dialogues": dialogues}


def _split(groups: list[int]) -> list[np.ndarray]:
    """Row numbers of each part; rows of a group stay together."""
    owner = np.asarray(groups)
    names = np.random.default_rng(0).permutation(np.unique(owner))
    bounds = (np.cumsum(SHARES[:-1]) * len(names)).astype(int)
    return [np.flatnonzero(np.isin(owner, part)) for part in np.split(names, bounds)]


def _like(texts: list[str], groups: list[int]) -> list[int]:
    """Groups joined where two texts share half of the shorter one's pieces."""
    pieces = [{text[n : n + 4] for n in range(len(text) - 3)} for text in texts]
    for one in range(len(texts)):
        for other in range(one):
            common = len(pieces[one] & pieces[other])
            if 2 * common > min(len(pieces[one]), len(pieces[other])):
                old, new = groups[one], groups[other]
                groups = [new if group == old else group for group in groups]
    return groups


def halves(texts: list[str]) -> list[tuple[str, str]]:
    """Each text cut in two, at the end of a sentence near its middle or in the middle."""
    pairs: list[tuple[str, str]] = []
    for text in texts:
        middle = len(text) // 2
        ends = [match.end() for match in re.finditer(r"[.?!/\u3002\uff0c\uff1f\uff01]", text)]
        place = min(ends, key=lambda end: abs(end - middle), default=middle)
        if len(text) // 4 < place < len(text) - len(text) // 4:
            middle = place
        pairs.append((text[:middle].strip(), text[middle:].strip()))
    return [pair for pair in pairs if all(pair)]


def characters(texts: list[str]) -> list[str]:
    """Every character of some texts that is no ASCII and no space."""
    return sorted({c for text in texts for c in text if not c.isascii() and not c.isspace()})


def bm25(queries: list[str], passages: list[str], *, k: float = 1.2, b: float = 0.75) -> np.ndarray:
    """(Q, P) BM25 scores; terms are words of Latin letters, and Chinese characters and their pairs.

    Source: Robertson and Zaragoza 2009, eq. 3.15, with idf log(1 + (N - n + 0.5) / (n + 0.5)).
    """
    counts = [Counter(_terms(text)) for text in passages]
    lengths = np.asarray([sum(count.values()) for count in counts])
    places = {term: n for n, term in enumerate({term for count in counts for term in count})}
    weights = np.zeros((len(passages), len(places)), np.float32)
    for row, count in zip(weights, counts, strict=True):
        row[[places[term] for term in count]] = list(count.values())
    num = (weights > 0).sum(0)
    idf = np.log1p((len(passages) - num + 0.5) / (num + 0.5))
    weights *= (k + 1) / (weights + k * (1 - b + b * lengths / lengths.mean())[:, None])
    weights *= idf.astype(np.float32)
    scores = np.zeros((len(queries), len(passages)), np.float32)
    for row, query in zip(scores, queries, strict=True):
        row += weights[:, [places[term] for term in _terms(query) if term in places]].sum(1)
    return scores


def _terms(text: str) -> list[str]:
    chinese = re.findall(r"[\u4e00-\u9fff]+", text)
    pairs = [a + b for run in chinese for a, b in pairwise(run)]
    return re.findall(r"[a-z0-9]+", text.lower()) + [c for run in chinese for c in run] + pairs
