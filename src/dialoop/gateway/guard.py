"""The hook of filters: what goes in is checked, what comes out passes as far as it is safe.

A filter is made by the function that `guard` names in the configuration. It sees the prompt as
texts before any engine does, and every choice of an answer as a stream of its own: its text, its
reasoning and its tools' arguments, in whatever cuts the engine sends. What might still become part
of something forbidden is held back; clean text is not.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

Channel = Literal["content", "reasoning", "arguments"]


@dataclass(frozen=True, slots=True)
class Blocked(Exception):  # noqa: N818  a verdict
    """Something that may not pass."""

    category: str
    """What it is of, as the client is told."""
    rule: str = ""
    """Which rule found it; for logs and traces only."""


class TextGuard(Protocol):
    """One stream of text."""

    def feed(self, text: str) -> str:
        """Take text, give what may be shown now.

        Raises:
            Blocked: the answer ends here, with `finish_reason` `content_filter`.
        """
        ...

    def finish(self) -> str:
        """The text has ended; give what was held back.

        Raises:
            Blocked: as for `feed`.
        """
        ...


class Guard(Protocol):
    """A filter of requests and answers."""

    @property
    def policy(self) -> str:
        """Version of its rules; answers are cached by it."""
        ...

    def check(self, texts: Iterable[str]) -> None:
        """Check a prompt.

        Raises:
            Blocked: it may not be asked.
        """
        ...

    def open(self, channel: Channel) -> TextGuard:
        """A stream of text of one choice."""
        ...


def load(address: str) -> Guard:
    """Make the filter that a configuration names.

    Args:
        address: `module:function`.

    Raises:
        UserError: there is no such function.
    """
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"guard: `{address}` cannot be loaded ({error})",
            hint="name a function that can be imported, as `module:function`",
        ) from error
