"""Pinned facts and summaries as notes in the system message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dialoop.gateway.context.wording import wording_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]


def with_note(system: Sequence[Json], note: str) -> list[Json]:
    """System messages with a note behind the first, or with the note as the only one.

    Templates know one system message at the beginning; many refuse a second.
    """
    if not note:
        return list(system)
    if not system:
        return [{"role": "system", "content": note}]
    first, *others = system
    content = first.get("content")
    if isinstance(content, list):
        joined: Any = [*content, {"type": "text", "text": f"\n\n{note}"}]
    else:
        joined = f"{content}\n\n{note}" if content else note
    return [{**first, "content": joined}, *others]


def note(pins: Sequence[str], summary: str) -> str:
    """Pinned facts and a summary, each below a heading; empty where there is neither."""
    notes = [pins_note(pins)]
    if summary:
        notes.append(f"{wording_of(summary).summary}\n{summary}")
    return "\n\n".join(text for text in notes if text)


def pins_note(pins: Sequence[str]) -> str:
    """Pinned facts, a line each."""
    if not pins:
        return ""
    return "\n".join([wording_of("".join(pins)).pins, *(f"- {pin}" for pin in pins)])
