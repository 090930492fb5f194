"""The terminal view of a job: bars with time left while someone watches, plain lines otherwise."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dialoop.core.events import Artifact, Metrics, Note, Progress, Stage

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from dialoop.core.events import Event

FIRST_METRICS = ("loss_nats", "loss", "tokens_per_s", "lr")
"""Shown first in a metrics line, in this order."""


class TerminalSink:
    """Shows events on a console; use it as a context manager.

    Args:
        console: where to write; bars are drawn only when it is a terminal.
        every_s: the least time between two lines of the same numbers, and without a terminal
            between two lines of one task.
    """

    def __init__(self, console: Console, every_s: float = 10.0) -> None:
        self._console = console
        self._every_s = every_s
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._numbers: frozenset[str] = frozenset()

    def __enter__(self) -> TerminalSink:
        """Begin; nothing is drawn before the first event."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars off the screen, whatever happened."""
        self.pause()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Stage(title):
                self.pause()
                self._shown.clear()
                self._started.clear()
                self._line(f"== {title[:1].upper()}{title[1:]}", "bold")
            case Progress():
                self._progress(event)
            case Metrics():
                self._metrics(event)
            case Note(text, "warning"):
                self._line(f"warning: {text}", "yellow")
            case Note(text):
                self._line(text, "")
            case Artifact(kind, path):
                self._line(f"wrote {kind}: {path}", "green")

    def _line(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _progress(self, event: Progress) -> None:
        if self._console.is_terminal:
            self._draw(event)
            return
        now = time.monotonic()
        self._started.setdefault(event.task, now)
        is_whole = event.total is not None and event.done >= event.total
        due = now - self._shown.get(event.task, -self._every_s) >= self._every_s
        if due or is_whole:
            self._shown[event.task] = now
            self._line(progress_line(event, now - self._started[event.task]), "")

    def _draw(self, event: Progress) -> None:
        if self._bars is None:
            self._bars = _bars(self._console)
            self._bars.start()
        if event.task not in self._tasks:
            self._tasks[event.task] = self._bars.add_task(event.task, note="", amount="")
        self._bars.update(
            self._tasks[event.task],
            completed=event.done,
            total=event.total,
            amount=amount(event),
            note=event.note,
        )

    def _metrics(self, event: Metrics) -> None:
        """Show other numbers than the last time, such as a validation, at once."""
        now = time.monotonic()
        is_due = now - self._shown.get("metrics", -self._every_s) >= self._every_s
        if is_due or event.values.keys() != self._numbers:
            self._shown["metrics"] = now
            self._line(metrics_line(event), "")
        self._numbers = frozenset(event.values)

    def pause(self) -> None:
        """Take the bars off the screen until the next progress, so that a person may type."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks.clear()


def progress_line(event: Progress, elapsed_s: float) -> str:
    """A task as one line of text: how far, how fast, how long still."""
    parts = [f"{event.task}: {amount(event)}"]
    if event.total:
        parts.append(f"{100 * event.done / event.total:.0f} %")
    if elapsed_s > 1 and event.done:
        rate = event.done / elapsed_s
        shown = f"{quantity(rate, event.unit)}/s" if event.unit == "bytes" else f"{rate:.3g}/s"
        parts.append(shown)
        if event.total and event.done < event.total:
            parts.append(f"{duration((event.total - event.done) / rate)} left")
    if event.note:
        parts.append(event.note)
    return ", ".join(parts)


def metrics_line(event: Metrics) -> str:
    """Numbers at a step as one line: loss, speed and learning rate first."""
    first = [name for name in FIRST_METRICS if name in event.values]
    names = first + [name for name in event.values if name not in first]
    shown = "  ".join(f"{name} {event.values[name]:.4g}" for name in names)
    return f"step {event.step}  {shown}"


def amount(event: Progress) -> str:
    """`12/40 rows`, `3.5/10.0 MB`."""
    if event.unit == "bytes":
        done = quantity(event.done, "bytes")
        return f"{done} of {quantity(event.total, 'bytes')}" if event.total else done
    total = f"/{event.total:g}" if event.total else ""
    return f"{event.done:g}{total} {event.unit}".rstrip()


def quantity(value: float, unit: str) -> str:
    """A number with its unit, bytes in powers of a thousand."""
    if unit != "bytes":
        return f"{value:.3g} {unit}".rstrip()
    for name in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {name}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _bars(console: Console) -> Bars:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )
