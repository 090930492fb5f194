"""Units: what must be learned together, as rows of ids and loss weights.

A dialogue is a unit of one row; a preference pair is one of two, the better answer first; a query
with its passages is one of many. Packing never takes a unit apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dialoop.chat.template import Row
from dialoop.core.errors import UserError
from dialoop.data.sample import prompt_and_endings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dialoop.chat.message import Message, Tool
    from dialoop.chat.template import Template
    from dialoop.data.sample import Sample

    Encode = Callable[[Sample, Template], list["Unit"]]

__all__ = ["Row", "Unit"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that are learned together."""

    rows: tuple[Row, ...]
    value: float = 0.0
    """A number that belongs to them: a label, a score, a margin."""

    def __len__(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.rows))


def text_units(sample: Sample, template: Template) -> list[Unit]:
    """A text whole, or the answers of a dialogue: most often one unit of one row.

    Raises:
        UserError: the sample is of another kind, or has nothing to learn.
    """
    if sample.kind == "text":
        row = template.text_row(sample.text or "")
        if not row.weights.any():
            raise UserError("the text is empty")
        return [Unit((row,))]
    if sample.kind == "dialogue":
        return [Unit((row,)) for row in template.train_rows(sample.messages, sample.tools)]
    raise UserError(f"a {sample.kind} record cannot be trained on as text")


def whole_text_units(sample: Sample, template: Template) -> list[Unit]:
    """As `text_units`, with every token of a dialogue learned, not its answers alone."""
    if sample.text is None:
        sample = replace(sample, text=template.prompt(sample.messages, sample.tools), messages=())
    return text_units(sample, template)


def pair_units(sample: Sample, template: Template) -> list[Unit]:
    """A unit (chosen, rejected) for each worse ending; only the endings carry weights.

    Raises:
        UserError: the sample holds no preference, or the template does not write an ending in one
            piece with its prompt.
    """
    if sample.kind != "preference":
        raise UserError(f"a {sample.kind} record holds no preference")
    dialogue, pairs = prompt_and_endings(sample)
    return [
        Unit(tuple(
            ending_row(dialogue[: len(dialogue) - len(better)], ending, sample.tools, template)
            for ending in (better, worse)
        ))
        for better, worse in pairs
    ]  # fmt: skip


def judged_units(sample: Sample, template: Template) -> list[Unit]:
    """A unit of one row whose value is 1 for a wanted answer and 0 for an unwanted one.

    A preference becomes its chosen ending, wanted, and its rejected ones, unwanted.

    Raises:
        UserError: the sample carries no judgement.
    """
    if sample.kind == "preference":
        pairs = pair_units(sample, template)
        return [Unit(pairs[0].rows[:1], 1.0), *(Unit(pair.rows[1:], 0.0) for pair in pairs)]
    if sample.kind != "unpaired":
        raise UserError(f"a {sample.kind} record carries no judgement")
    *prompt, answer = sample.messages
    row = ending_row(prompt, [answer], sample.tools, template)
    return [Unit((row,), float(bool(sample.label)))]


def compared_units(sample: Sample, template: Template) -> list[Unit]:
    """A unit (chosen, rejected) of whole dialogues for each worse ending; its value is the margin.

    The column `margin` holds a number, or one for each worse ending; without it they are 0.

    Raises:
        UserError: the sample holds no preference, or its margins are not numbers.
    """
    if sample.kind != "preference":
        raise UserError(f"a {sample.kind} record holds no preference")
    dialogue, pairs = prompt_and_endings(sample)
    chosen = template.dialogue_row(dialogue, sample.tools)
    units: list[Unit] = []
    for (better, worse), margin in zip(pairs, _margins(sample, len(pairs)), strict=True):
        ending = (*dialogue[: len(dialogue) - len(better)], *worse)
        units.append(Unit((chosen, template.dialogue_row(ending, sample.tools)), margin))
    return units


def _margins(sample: Sample, count: int) -> list[float]:
    given = dict(sample.extra).get("margin", 0.0)
    margins = given if isinstance(given, list) else [given] * count
    try:
        numbers = [float(margin) for margin in margins]
    except (TypeError, ValueError) as error:
        raise UserError("a margin is not a number") from error
    if len(numbers) != count:
        raise UserError("there are not as many margins as rejected answers")
    return numbers


def label_of(sample: Sample, column: str) -> str | None:
    """The label of a sample as text: a name, a whole number, `true` or `false`; None without."""
    extra = dict(sample.extra)
    value = extra.get(column, extra.get(f"_{column}"))
    if value is None and column == "label":
        value = sample.label if sample.label is not None else sample.score
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def labelled_unit(sample: Sample, template: Template, value: float) -> Unit:
    """A text, a pair of texts or a dialogue, read whole, with the number of its label."""
    if sample.kind == "retrieval":
        query, (other, *_), _ = _search_texts(sample)
        return Unit((template.framed_row(query, other),), value)
    if sample.text is not None:
        return Unit((template.framed_row(sample.text),), value)
    if len(sample.messages) == 1:
        return Unit((template.framed_row(sample.messages[0].text),), value)
    return Unit((template.dialogue_row(sample.messages, sample.tools),), value)


def searched_units(
    sample: Sample, template: Template, *, instruction: str, num_negatives: int, scored: bool
) -> list[Unit]:
    """A unit (query, positive, negatives...) for each positive; or (text, text) and its score.

    Args:
        sample: retrieval data.
        template: writes the rows.
        instruction: text before the query.
        num_negatives: how many of the negatives are taken.
        scored: whether pairs with a score are wanted.

    Raises:
        UserError: the sample is of another kind, or has a score and none is wanted, or lacks one.
    """
    query, positives, negatives = _search_texts(sample)
    if scored and sample.score is None:
        raise UserError("the pair has no score")
    if not scored and sample.score is not None:
        raise UserError("a scored pair; use loss_type cosent or cosine")
    others = [] if scored else negatives[:num_negatives]
    asked = template.framed_row(instruction + query)
    rows = [template.framed_row(text) for text in others]
    value = sample.score or 0.0
    return [Unit((asked, template.framed_row(text), *rows), value) for text in positives]


def ranked_units(
    sample: Sample, write: Callable[[str, str], Row], *, num_negatives: int, listed: bool
) -> list[Unit]:
    """Queries with passages in one row: a unit for each positive and the negatives, or for each.

    Args:
        sample: retrieval data.
        write: makes the row of a query and a passage.
        num_negatives: how many of the negatives are taken.
        listed: a positive stands before its negatives in one unit; else each passage is a unit of
            its own, with 1, 0 or its score.

    Raises:
        UserError: the sample is of another kind, has no negative for a list, or a score that is
            no share.
    """
    query, positives, negatives = _search_texts(sample)
    wanted = 1.0 if sample.score is None else sample.score
    if not 0 <= wanted <= 1:
        raise UserError("a score is not between 0 and 1")
    bad = [write(query, text) for text in negatives[:num_negatives]]
    good = [write(query, text) for text in positives]
    if not listed:
        return [Unit((row,), wanted) for row in good] + [Unit((row,), 0.0) for row in bad]
    if not bad or sample.score is not None:
        raise UserError("no negative passage to compare with; use loss_type pointwise")
    return [Unit((row, *bad)) for row in good]


def _search_texts(sample: Sample) -> tuple[str, list[str], list[str]]:
    """(query, positives, negatives)."""
    if sample.kind != "retrieval":
        raise UserError(f"a {sample.kind} record holds no query with passages")
    positives, negatives = (
        ["\n".join(item.text for item in passage) for passage in passages]
        for passages in (sample.positives, sample.negatives)
    )
    return "\n".join(item.text for item in sample.query), positives, negatives


def ending_row(
    prompt: Sequence[Message], ending: Sequence[Message], tools: Sequence[Tool], template: Template
) -> Row:
    """One row of a dialogue in which the ending's answers alone carry weight.

    Raises:
        UserError: the template does not write the dialogue in one piece.
    """
    silent = [replace(m, weight=0.0) if m.role == "assistant" else m for m in prompt]
    rows = template.train_rows([*silent, *ending], tools)
    if not rows:
        raise UserError("an answer is empty")
    if len(rows) > 1:
        raise UserError("the chat template does not write this dialogue in one piece")
    return rows[0]
