"""One option."""

from typing import Literal

from pydantic import Field

from dialoop.core.schema import Option


class Small(Option, frozen=True):
    """Few numbers move."""

    kind: Literal["small"] = "small"
    rank: int = 16
    """Rank of the update."""
    targets: list[str] = Field(default_factory=list)
    """Which layers."""
