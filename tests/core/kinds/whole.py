"""Another option."""

from typing import Literal

from dialoop.core.schema import Option


class Whole(Option, frozen=True):
    """Everything moves."""

    kind: Literal["whole"] = "whole"
