"""Sample, the one canonical record that every layout becomes, and its JSON Lines spelling.

A sample says what one record of a data set means, whatever columns it came in. Its JSON form is
what `dialoop data convert` writes and what reads back unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dialoop.chat.message import from_openai, to_openai, tool_from_openai, tool_to_openai

if TYPE_CHECKING:
    from dialoop.chat.message import Message, Tool

Kind = Literal["text", "dialogue", "preference", "unpaired", "prompt", "retrieval"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record was read."""

    file: str
    line: int
    """Line of a text file, row of a table, or number of a JSON record, from 1."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One record. Which fields are set decides what it can train (`kind`)."""

    messages: tuple[Message, ...] = ()
    """The dialogue, with its answer; for preferences, with the chosen answer."""
    text: str | None = None
    """Plain text for pre-training."""
    tools: tuple[Tool, ...] = ()
    rejected: tuple[tuple[Message, ...], ...] = ()
    """Worse endings, best first; each replaces the messages after the last user turn that the
    chosen dialogue and it have in common."""
    label: bool | None = None
    """Whether the answer is wanted (KTO)."""
    query: tuple[Message, ...] = ()
    """What is searched for, in retrieval data."""
    positives: tuple[tuple[Message, ...], ...] = ()
    negatives: tuple[tuple[Message, ...], ...] = ()
    score: float | None = None
    """Similarity of the query and its one positive, where the data set grades it."""
    extra: tuple[tuple[str, Any], ...] = ()
    """Columns that the layout does not know, kept for rewards and evaluation (`solution`, ids)."""
    origin: Origin | None = None

    @property
    def kind(self) -> Kind:
        """What this record can train."""
        if self.query:
            return "retrieval"
        if self.text is not None:
            return "text"
        if self.rejected:
            return "preference"
        if self.label is not None:
            return "unpaired"
        return "dialogue" if self.messages[-1].role == "assistant" else "prompt"


def to_json(sample: Sample) -> dict[str, Any]:
    """The canonical JSON object of a sample; only the fields that are set."""
    out: dict[str, Any] = {}
    if sample.messages:
        out["messages"] = [to_openai(item) for item in sample.messages]
    if sample.text is not None:
        out["text"] = sample.text
    if sample.tools:
        out["tools"] = [tool_to_openai(tool) for tool in sample.tools]
    if sample.rejected:
        out["rejected"] = [[to_openai(item) for item in ending] for ending in sample.rejected]
    if sample.label is not None:
        out["label"] = sample.label
    if sample.query:
        out["query"] = [to_openai(item) for item in sample.query]
    for name in ("positives", "negatives"):
        if dialogues := getattr(sample, name):
            out[name] = [[to_openai(item) for item in dialogue] for dialogue in dialogues]
    if sample.score is not None:
        out["score"] = sample.score
    out.update(dict(sample.extra))
    return out


def from_json(raw: dict[str, Any], origin: Origin | None = None) -> Sample:
    """Read what `to_json` wrote.

    Raises:
        UserError: a message is not in the canonical spelling.
    """
    rest = dict(raw)

    def dialogue(items: Any) -> tuple[Message, ...]:
        return tuple(from_openai(item) for item in items)

    return Sample(
        messages=dialogue(rest.pop("messages", ())),
        text=rest.pop("text", None),
        tools=tuple(tool_from_openai(item) for item in rest.pop("tools", ())),
        rejected=tuple(dialogue(items) for items in rest.pop("rejected", ())),
        label=rest.pop("label", None),
        query=dialogue(rest.pop("query", ())),
        positives=tuple(dialogue(items) for items in rest.pop("positives", ())),
        negatives=tuple(dialogue(items) for items in rest.pop("negatives", ())),
        score=rest.pop("score", None),
        extra=tuple(rest.items()),
        origin=origin,
    )


def prompt_and_endings(
    sample: Sample,
) -> tuple[tuple[Message, ...], list[tuple[tuple[Message, ...], tuple[Message, ...]]]]:
    """(the shared prompt's dialogue, [(chosen ending, rejected ending), ...]) of a preference.

    Every rejected ending takes as many user turns as the chosen ending that it replaces; that
    says where it begins. The prompt of each pair is the dialogue without its chosen ending.
    """
    pairs = []
    for worse in sample.rejected:
        wanted = sum(item.role == "user" for item in worse)
        start = len(sample.messages)
        while start and not (
            sample.messages[start - 1].role in {"user", "tool"}
            and sum(item.role == "user" for item in sample.messages[start:]) == wanted
        ):
            start -= 1
        pairs.append((sample.messages[start:], worse))
    return sample.messages, pairs
