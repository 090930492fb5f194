"""Retrieval: does an embedding model find the right passages of a corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.evaluate import ranking, records
from dialoop.evaluate.result import Case, Measured, Observed, Score
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dialoop.evaluate.tasks import Material, Subject

Json = dict[str, Any]

_ID = ("id", "_id", "doc_id", "pid")
_TEXT = ("text", "passage", "content", "answer")


class RetrievalTask(Task, frozen=True):
    """nDCG, MRR and recall of the first places, by cosine of embeddings."""

    kind: Literal["retrieval"] = "retrieval"
    files: list[str] = Field(min_length=1)
    """Queries: JSON Lines with `query` and `positive` (a text, an id of the corpus, or a list of
    them); `negative` passages join the corpus."""
    corpus: list[str] = Field(default=[])
    """Files of passages to find: objects with `text` and perhaps `id`, or plain lines. Without it
    the passages of all queries are the corpus."""
    places: PositiveInt = 10
    """How many of the first places count."""
    instruction: str = ""
    """Text before every query, as the model was trained with."""
    limit: PositiveInt | None = None
    """At most so many queries, the first ones; the corpus stays whole."""

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Rank the whole corpus for every query."""
        del material
        rows = records.objects(self.files, self.kind)
        passages = self._passages()
        asked = [
            (_text(row, ("query", "question"), where), _listed(row, "positive"))
            for where, row in rows
        ]
        if not self.corpus:
            for _, row in rows:
                passages |= {t: t for t in (*_listed(row, "positive"), *_listed(row, "negative"))}
        by_text = {text: name for name, text in passages.items()}
        texts = list(by_text)
        asked = asked[: self.limit]
        gains = np.zeros((len(asked), len(texts)))
        place = {text: n for n, text in enumerate(texts)}
        for n, (query, positives) in enumerate(asked):
            for positive in positives:
                text = passages.get(positive, positive)
                if text not in place:
                    raise UserError(
                        f"task retrieval: the corpus lacks `{positive[:80]}`, which answers "
                        f"`{query[:80]}`",
                        hint="add the passage to `corpus`",
                    )
                gains[n, place[text]] = 1
        queries = subject.vectors([query for query, _ in asked], self.instruction)
        found = queries @ subject.vectors(texts, "").T
        return self._measured([query for query, _ in asked], texts, found, gains)

    def _passages(self) -> dict[str, str]:
        """Texts by id; a passage without an id is its own."""
        found: dict[str, str] = {}
        for where, row in records.objects(self.corpus, self.kind) if self.corpus else []:
            text = _text(row, _TEXT, where)
            name = next((str(row[key]) for key in _ID if row.get(key) is not None), text)
            found[name] = text
        return found

    def _measured(
        self,
        queries: list[str],
        texts: list[str],
        found: NDArray[np.floating],
        gains: NDArray[np.floating],
    ) -> Measured:
        measures = {"nDCG": ranking.ndcg, "MRR": ranking.mrr, "recall": ranking.recall}
        names = [f"{number}: {query}" for number, query in enumerate(queries, 1)]
        scores = [
            Score.of(
                f"{name}@{self.places}",
                [
                    Observed(
                        id=query, value=measure(found[n : n + 1], gains[n : n + 1], self.places)
                    )
                    for n, query in enumerate(names)
                ],
                best=1,
            )
            for name, measure in measures.items()
        ]
        counts = {"queries": len(queries), "passages": len(texts)}
        scores += [Score(name=k, value=v, unit="", better="neither") for k, v in counts.items()]
        first = found.argmax(axis=1)
        cases = tuple(
            Case(
                id=names[n],
                question=query,
                answer=texts[first[n]],
                reference="\n\n".join(texts[k] for k in np.flatnonzero(gains[n])),
                passed=bool(gains[n, first[n]]),
                problems=() if gains[n, first[n]] else ("another passage comes first",),
            )
            for n, query in enumerate(queries)
        )
        return Measured(task=self.title, scores=tuple(scores), cases=cases)


def _listed(row: Json, name: str) -> list[str]:
    value = row.get(name, row.get(f"{name}s"))
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [str(item["text"] if isinstance(item, dict) else item) for item in items]


def _text(row: Json, names: tuple[str, ...], where: str) -> str:
    found = next((row[name] for name in names if isinstance(row.get(name), str)), None)
    if found is None:
        raise UserError(
            f"task retrieval: {where}: none of {', '.join(names)} holds a text "
            f"(there are: {', '.join(row)})"
        )
    return found
