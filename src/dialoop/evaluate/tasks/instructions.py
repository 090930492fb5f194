"""Instruction following: are instructions kept that a program can check, as IFEval measures it.

Source: Zhou et al. 2023, arXiv:2311.07911: by prompt (all of its instructions are kept) and by
instruction; strictly, and loosely, where one of eight trimmed variants of the answer suffices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.chat.message import message
from dialoop.core.errors import UserError
from dialoop.evaluate import instructions, records
from dialoop.evaluate.result import Case, Grid, Measured, Observed, Score
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from dialoop.evaluate.tasks import Material, Subject

Json = dict[str, Any]


class Instructions(Task, frozen=True):
    """The share of prompts, and of instructions, that are kept."""

    kind: Literal["instructions"] = "instructions"
    files: list[str] = Field(min_length=1)
    """JSON Lines in IFEval's layout: `key`, `prompt`, `instruction_id_list`, `kwargs`."""
    limit: PositiveInt | None = None
    """At most so many prompts, the first ones."""

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Ask every prompt once and check each of its instructions."""
        del material
        rows = [_checked(*row) for row in records.objects(self.files, self.kind)][: self.limit]
        texts = subject.answers([[message("user", row["prompt"])] for row in rows])
        strict = [_kept(row, (text,)) for row, text in zip(rows, texts, strict=True)]
        loose = [_kept(row, instructions.variants(t)) for row, t in zip(rows, texts, strict=True)]
        cases = [_case(*item) for item in zip(rows, texts, strict, strict=True)]
        return Measured(
            task=self.title,
            scores=(
                _by_prompt("prompts, strict", rows, strict),
                _by_prompt("prompts, loose", rows, loose),
                _by_instruction("instructions, strict", rows, strict),
                _by_instruction("instructions, loose", rows, loose),
                Score(name="prompts", value=len(rows), unit="", better="neither"),
            ),
            cases=tuple(cases),
            grids=(_grid(rows, strict, loose),),
        )


def _checked(where: str, row: Json) -> Json:
    for name in ("key", "prompt", "instruction_id_list", "kwargs"):
        records.field(row, name, where, "instructions")
    if len(row["instruction_id_list"]) != len(row["kwargs"]):
        raise UserError(f"task instructions: {where}: not one of `kwargs` for each instruction")
    for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        try:
            instructions.is_kept(name, kwargs, "x")
        except UserError as error:
            text = f"task instructions: {where}: {error.args[0]}"
            raise UserError(text, hint=error.hint) from error
    return row


def _kept(row: Json, texts: tuple[str, ...]) -> list[bool]:
    """Of each instruction, whether one of the texts keeps it."""
    pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
    return [any(instructions.is_kept(name, kw, text) for text in texts) for name, kw in pairs]


def _by_prompt(name: str, rows: list[Json], kept: list[list[bool]]) -> Score:
    pairs = zip(rows, kept, strict=True)
    return Score.of(
        name, [Observed(id=str(row["key"]), value=float(all(k))) for row, k in pairs], best=1
    )


def _by_instruction(name: str, rows: list[Json], kept: list[list[bool]]) -> Score:
    """The prompt is what is drawn again: its instructions are not independent."""
    pairs = zip(rows, kept, strict=True)
    return Score.of(
        name,
        [Observed(id=str(row["key"]), value=sum(k), weight=len(k)) for row, k in pairs],
        best=1,
    )


def _case(row: Json, text: str, kept: list[bool]) -> Case:
    pairs = zip(row["instruction_id_list"], kept, strict=True)
    broken = tuple(f"breaks {name}" for name, is_kept in pairs if not is_kept)
    return Case(
        id=str(row["key"]),
        question=row["prompt"],
        answer=text,
        passed=not broken,
        problems=broken,
    )


def _grid(rows: list[Json], strict: list[list[bool]], loose: list[list[bool]]) -> Grid:
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for row, firm, soft in zip(rows, strict, loose, strict=True):
        for name, *both in zip(row["instruction_id_list"], firm, soft, strict=True):
            groups.setdefault(name, []).append((both[0], both[1]))
    names = tuple(sorted(groups))
    return Grid(
        title="kept by instruction",
        rows=names,
        columns=("strict", "loose"),
        values=tuple(
            tuple(sum(column) / len(column) for column in zip(*groups[name], strict=True))
            for name in names
        ),
    )
