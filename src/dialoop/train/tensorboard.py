"""TensorBoard as a sink of events: every metric a curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.core.events import Metrics

if TYPE_CHECKING:
    from pathlib import Path

    from dialoop.core.events import Event


class TensorBoardSink:
    """Writes metrics that `tensorboard --logdir FOLDER` shows.

    Args:
        folder: of the event files; a resumed run adds one more.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Add one point to each metric's curve."""
        if isinstance(event, Metrics):
            for name, value in event.values.items():
                self._writer.add_scalar(name, value, event.step)

    def close(self) -> None:
        """Write what is held back, and close the file."""
        self._writer.close()
