"""Judged pairs: which of two models' answers another model prefers, asked in both orders.

Sources: Zheng et al. 2023, arXiv:2306.05685, sections 3.1 and 3.4 (a preference that turns with the
order is a tie); agreement beyond chance, Cohen 1960, eq. 1.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.evaluate import records
from dialoop.evaluate.result import Case, Grid, Measured, Observed, Score
from dialoop.evaluate.statistics import mcnemar
from dialoop.evaluate.tasks import Task
from dialoop.train.endpoint import Endpoint  # noqa: TC001  pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.message import Message
    from dialoop.evaluate.tasks import Material, Subject

Json = dict[str, Any]
Vote = Literal["A", "B", "tie"]

_VERDICT = re.compile(r"\[\[(A|B|C|tie)\]\]", re.IGNORECASE)


class Judge(Task, frozen=True):
    """The share of questions on which the model's answer is preferred to the other's."""

    kind: Literal["judge"] = "judge"
    endpoint: Endpoint
    """The judge, at any OpenAI-compatible address."""
    files: list[str] = Field(default=[])
    """Questions: JSON Lines with `turns` (MT-bench: each turn is asked after the answer to the one
    before) or `question`; without it the held-out dialogues are asked."""
    count: PositiveInt = 40
    """At most so many questions, the first ones."""
    instruction: str = (
        "Compare two assistants' answers to the user's question. Prefer the one that is more "
        "helpful, correct and clear; do not let the order or the length sway you. Reply with "
        "[[A]] if assistant A is better, [[B]] if assistant B is better, or [[C]] for a tie."
        "\n\n[Question]\n{question}\n\n[Assistant A]\n{a}\n\n[Assistant B]\n{b}"
    )
    """What the judge is told; `{question}`, `{a}` and `{b}` are filled in, and the last of [[A]],
    [[B]] and [[C]] in its reply counts."""
    max_tokens: PositiveInt = 512
    """Longest reply of the judge."""

    @override
    def lacks(self, material: Material) -> str | None:
        """Held-out dialogues, where no questions are named."""
        return None if self.files or material.samples is not None else "dataset"

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Answer the questions, turn by turn; the judge is asked once both models are known."""
        asked = self._questions(material)
        told: list[list[Message]] = [[] for _ in asked]
        for turn in range(max(len(turns) for _, turns, _ in asked)):
            going = [n for n, (_, turns, _) in enumerate(asked) if turn < len(turns)]
            for n in going:
                told[n] += asked[n][1][turn]
            answers = subject.answers([told[n] for n in going])
            for n, text in zip(going, answers, strict=True):
                told[n].append(message("assistant", text or "(no answer)"))
        cases = tuple(
            Case(
                id=name,
                question="\n".join(
                    m.text if m.role == "user" else f"({m.role}: {m.text})"
                    for turn in turns
                    for m in turn
                ),
                answer="\n\n".join(
                    m.text for m in dialogue[_given(turns) :] if m.role == "assistant"
                ),
                reference=reference,
            )
            for (name, turns, reference), dialogue in zip(asked, told, strict=True)
        )
        return Measured(task=self.title, cases=cases)

    @override
    def confront(self, model: Measured, before: Measured | None) -> Measured:
        """Ask the judge about the model's answers beside the other's, or beside the references.

        Raises:
            UserError: there is nothing beside them.
            UpstreamError: the judge does not answer.
        """
        others = {c.id: c.answer for c in before.cases} if before else {}
        others = others or {c.id: c.reference for c in model.cases if c.reference}
        pairs = [(case, others[case.id]) for case in model.cases if others.get(case.id)]
        if not pairs:
            raise UserError(
                "task judge: there is nothing to judge the answers beside",
                hint="give a second model with `--compare`, or questions with reference answers",
            )
        asked = [self._told(c, c.answer, other) for c, other in pairs]
        asked += [self._told(c, other, c.answer) for c, other in pairs]
        with ThreadPoolExecutor(self.endpoint.parallel) as pool:
            votes: list[Vote | None] = list(pool.map(self._vote, asked))
        first = votes[: len(pairs)]
        second: list[Vote | None] = [_swapped(vote) for vote in votes[len(pairs) :]]
        judged: dict[str, tuple[Vote | None, Vote | None]] = {
            c.id: (one, two) for (c, _), one, two in zip(pairs, first, second, strict=True)
        }
        cases = tuple(_judged(case, judged.get(case.id)) for case in model.cases)
        update = {"cases": cases, "scores": _scores(judged), "grids": (_grid(judged),)}
        return model.model_copy(update=update)

    def _questions(self, material: Material) -> list[tuple[str, list[list[Message]], str | None]]:
        """Name, what is said turn by turn, and a reference answer where there is one."""
        if self.files:
            rows = records.objects(self.files, self.kind)[: self.count]
            return [_of_row(row, where) for where, row in rows]
        found: list[tuple[str, list[list[Message]], str | None]] = []
        for sample in material.samples or ():
            if sample.kind == "dialogue" and len(found) < self.count:
                turns, last = list(sample.messages[:-1]), sample.messages[-1].text
                found.append((f"held-out {len(found) + 1}", [turns], last))
        if not found:
            raise UserError("task judge: the data set holds no dialogue", hint="give `files`")
        return found

    def _told(self, case: Case, a: str, b: str) -> str:
        fields = {"question": case.question, "a": a, "b": b}
        return re.sub(r"\{(question|a|b)\}", lambda m: fields[m[1]], self.instruction)

    def _vote(self, told: str) -> Vote | None:
        body = {
            "messages": [{"role": "user", "content": told}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        reply = self.endpoint.post("chat/completions", body)
        text = (reply["choices"][0]["message"].get("content") or "").strip()
        said = _VERDICT.findall(text)
        return _vote_of(said[-1]) if said else None


def kappa(one: Sequence[str], two: Sequence[str]) -> float | None:
    """Cohen's kappa of two raters of the same things; None where both always say the same one."""
    labels = sorted({*one, *two})
    total = len(one)
    seen = sum(a == b for a, b in zip(one, two, strict=True)) / total
    chance = sum((one.count(x) / total) * (two.count(x) / total) for x in labels)
    return None if chance == 1 else (seen - chance) / (1 - chance)


def _of_row(row: Json, where: str) -> tuple[str, list[list[Message]], str | None]:
    name = str(row.get("question_id") or row.get("id") or where)
    turns = row.get("turns") or [records.field(row, "question", where, "judge")]
    reference = row.get("reference")
    listed = [reference] if isinstance(reference, str) else reference
    text = "\n\n".join(map(str, listed)) if listed else None
    return name, [[message("user", str(turn))] for turn in turns], text


def _given(turns: list[list[Message]]) -> int:
    """Messages of the dialogue before the first answer."""
    return len(turns[0])


def _vote_of(word: str) -> Vote:
    votes: dict[str, Vote] = {"A": "A", "B": "B"}
    return votes.get(word.upper(), "tie")


def _swapped(vote: Vote | None) -> Vote | None:
    swaps: dict[str | None, Vote | None] = {"A": "B", "B": "A", "tie": "tie", None: None}
    return swaps[vote]


def _outcome(one: Vote | None, two: Vote | None) -> float | None:
    """1 where the model wins, 0 where it loses, 1/2 for ties and turned votes; None if unread."""
    if one is None or two is None:
        return None
    if one == two and one != "tie":
        return 1.0 if one == "A" else 0.0
    return 0.5


def _judged(case: Case, votes: tuple[Vote | None, Vote | None] | None) -> Case:
    if votes is None:
        return case.model_copy(update={"problems": ("not judged: nothing stands beside it",)})
    outcome = _outcome(*votes)
    words = {1.0: "preferred", 0.0: "not preferred", 0.5: "tie", None: "the judge gave no verdict"}
    said = words[outcome]
    if outcome == 0.5 and votes[0] != votes[1]:
        said = "tie: the judge's preference turned with the order"
    passed = None if outcome in (None, 0.5) else outcome == 1.0
    return case.model_copy(update={"passed": passed, "problems": (said,)})


def _scores(judged: dict[str, tuple[Vote | None, Vote | None]]) -> tuple[Score, ...]:
    outcomes = {name: _outcome(*votes) for name, votes in judged.items()}
    known = {name: value for name, value in outcomes.items() if value is not None}
    read = [(one, two) for one, two in judged.values() if one and two]
    counts = {
        "wins": sum(value == 1 for value in known.values()),
        "ties": sum(value == 0.5 for value in known.values()),
        "losses": sum(value == 0 for value in known.values()),
        "no verdict": len(judged) - len(known),
    }
    scores = [Score(name=k, value=v, unit="pairs", better="neither") for k, v in counts.items()]
    if not read:
        return tuple(scores)
    won = [Observed(id=name, value=value) for name, value in known.items()]
    same = [Observed(id=str(n), value=float(one == two)) for n, (one, two) in enumerate(read)]
    ones, twos = [one for one, _ in read], [two for _, two in read]
    # in the first order the model stands first, in the second the other does
    firsts = [v == "A" for v in ones if v != "tie"] + [v == "B" for v in twos if v != "tie"]
    shares = {
        "kappa of the two orders": kappa(ones, twos),
        "p of wins against losses": mcnemar(int(counts["wins"]), int(counts["losses"])),
    }
    if firsts:
        shares["votes for the first place"] = sum(firsts) / len(firsts)
    neutral = Score.of("win rate", won, better="neither", best=1)
    return (
        neutral.model_copy(update={"observed": ()}),
        *scores,
        Score.of("both orders agree", same, better="neither", best=1),
        *(
            Score(name=name, value=value, unit="", better="neither")
            for name, value in shares.items()
            if value is not None
        ),
    )


def _grid(judged: dict[str, tuple[Vote | None, Vote | None]]) -> Grid:
    names: dict[str | None, str] = {"A": "model", "B": "other", "tie": "tie", None: "none"}
    votes = list(judged.values())
    return Grid(
        title="share of pairs, by the vote with the model first (rows) and second (columns)",
        rows=tuple(names.values()),
        columns=tuple(names.values()),
        values=tuple(
            tuple(votes.count((one, two)) / len(votes) for two in names)  # pyright: ignore[reportArgumentType]
            for one in names
        ),
    )
