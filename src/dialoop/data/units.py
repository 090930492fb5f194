"""Units: what must be learned together, as rows of ids and loss weights.

A dialogue is a unit of one row; a preference pair is one of two, the better answer first; a query
with its passages is one of many. Packing never takes a unit apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

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
    """A number that belongs to them: a label, a score, a margin, an advantage."""
    logps: np.ndarray | None = None
    """(n,) float32: log p of the labelled tokens of all rows when they were sampled, if known."""

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


def prompt_units(sample: Sample, template: Template) -> list[Unit]:
    """A unit of one row without weights: what an answer is wanted for; a last answer is left off.

    Raises:
        UserError: the sample is of another kind.
    """
    if sample.kind not in {"prompt", "dialogue"}:
        raise UserError(f"a {sample.kind} record is no prompt")
    answered = sample.messages[-1].role == "assistant"
    ids = template.prompt_ids(sample.messages[: -1 if answered else None], sample.tools)
    return [Unit((Row(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32)),))]


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
