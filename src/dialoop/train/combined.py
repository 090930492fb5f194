"""Several optimisers as one."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override


class Combined(torch.optim.Optimizer):
    """Steps its parts one after another; their groups are its own.

    Args:
        parts: optimisers of different parameters.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([g for part in parts for g in part.param_groups], {})
        self.parts = parts
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [g for part in self.parts for g in part.param_groups]

    @override
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every part's parameters."""
        del closure
        for part in self.parts:
            part.step()

    @override
    def state_dict(self) -> dict[str, Any]:
        """The parts' own."""
        return {"parts": [part.state_dict() for part in self.parts]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the parts' states back."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
