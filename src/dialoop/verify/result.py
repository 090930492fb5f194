"""What a verification finds, form by form and dialogue by dialogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from dialoop.core.schema import Result

if TYPE_CHECKING:
    from rich.console import RenderableType


NATS = ("first token, nats at most", "answer, nats on average")


class Sent(BaseModel, frozen=True):
    """One dialogue as the first form sends and answers it."""

    dialogue: str
    prompt_ids: tuple[int, ...]
    prompt: str
    answer_ids: tuple[int, ...]
    answer: str


class Compared(BaseModel, frozen=True):
    """One dialogue in another form."""

    dialogue: str
    answer: str
    is_same: bool
    """Whether the greedy answer is the first form's, token by token or letter by letter."""
    first_nats: float | None
    """Difference of the log-probability of the answer's first token; None where it is not told."""
    mean_nats: float | None = None
    """Mean difference over the answer's tokens, each after the first form's own tokens."""
    max_nats: float | None = None
    differs: str = ""
    """Where the greedy answers part."""
    refused: str = ""
    """Why the dialogue could not be asked; empty when it was."""


class Form(BaseModel, frozen=True):
    """One form of the model."""

    name: str
    kind: str
    """`whole`, `adapter`, `served`, or how the weights are quantized."""
    bound_nats: float
    """What `nats` may be at most."""
    is_quantized: bool = False
    """Whether its weights are rounded."""
    dialogues: tuple[Compared, ...]

    @property
    def worst_nats(self) -> float | None:
        """The largest difference of a first token; None where none is told."""
        return max((d.first_nats for d in self.dialogues if d.first_nats is not None), default=None)

    @property
    def mean_nats(self) -> float | None:
        """The mean difference over the answers; None where none is told."""
        told = [d.mean_nats for d in self.dialogues if d.mean_nats is not None]
        return sum(told) / len(told) if told else None

    @property
    def nats(self) -> float | None:
        """What is bounded: of rounded weights the mean, since single tokens move far by chance."""
        return self.mean_nats if self.is_quantized else self.worst_nats

    @property
    def agrees(self) -> bool:
        """Whether it differs by no more than it may."""
        return self.nats is None or self.nats <= self.bound_nats

    @property
    def num_same(self) -> int:
        """Dialogues with the same greedy answer."""
        return sum(d.is_same for d in self.dialogues)


class VerifyResult(Result, frozen=True):
    """The forms of one model beside its first one."""

    reference: str
    reference_kind: str
    sent: tuple[Sent, ...]
    forms: tuple[Form, ...]
    agrees: bool
    """Whether every form sends the same ids and differs by no more than it may."""
    report: str | None = None

    def text(self) -> RenderableType:
        """A table, a form a row."""
        from rich.console import Group
        from rich.table import Table

        head = ("form", "kind", "same ids", "same answers", *NATS, "agrees")
        table = Table(*head)
        for form in self.forms:
            table.add_row(form.name, *_cells(form))
        told = f"held against {self.reference} ({self.reference_kind})"
        return Group(table, told, *([f"report: {self.report}"] if self.report else []))


def markdown(result: VerifyResult) -> str:
    """The result as Markdown: what was sent, what each form answered."""
    out = [f"# Forms of {result.reference}", ""]
    head = ("form", "kind", "same ids", "same answers", *NATS, "agrees")
    out += ["| " + " | ".join(head) + " |", "|---|---|---|---|---|---|---|"]
    out += ["| " + " | ".join((form.name, *_cells(form))) + " |" for form in result.forms]
    for n, sent in enumerate(result.sent):
        out += ["", f"## {sent.dialogue}", "", "Ids sent: " + " ".join(map(str, sent.prompt_ids))]
        out += ["", _block(sent.prompt), "", f"**{result.reference}**", "", _block(sent.answer)]
        for form in result.forms:
            found = form.dialogues[n]
            facts = found.refused or found.differs or "the same answer"
            nats = "" if found.first_nats is None else f", first token {found.first_nats:.4f} nats"
            out += ["", f"**{form.name}**: {facts}{nats}"]
            if not found.is_same and not found.refused:
                out += ["", _block(found.answer)]
    return "\n".join(out) + "\n"


def _cells(form: Form) -> tuple[str, ...]:
    asked = [d for d in form.dialogues if not d.refused]
    nats = ["not told" if n is None else f"{n:.4f}" for n in (form.worst_nats, form.mean_nats)]
    nats[form.is_quantized] += f" (bound {form.bound_nats:g})"
    return (
        form.kind,
        f"{len(asked)}/{len(form.dialogues)}",
        f"{form.num_same}/{len(asked)}",
        *nats,
        "yes" if form.agrees else "no",
    )


def _block(text: str) -> str:
    fence = "`" * (3 + text.count("```"))
    return f"{fence}text\n{text}\n{fence}"
