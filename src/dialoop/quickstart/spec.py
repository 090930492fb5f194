"""What can be asked of the quickstart, and what it comes to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field

from dialoop.core.schema import Result, Spec

if TYPE_CHECKING:
    from rich.console import RenderableType


class QuickstartJob(Spec, frozen=True):
    """See real dialogues become a tuned model that answers over HTTP, in a few minutes."""

    aliases: ClassVar[Mapping[str, str]] = {
        "o": "output",
        "home": "output",
        "output_dir": "output",
        "num_train_epochs": "epochs",
        "lora_rank": "rank",
        "learning_rate": "lr",
    }

    model: str = "starter"
    """The model to tune: a short name, a folder, or an `hf://`, `ms://` address."""
    output: Path = Path("quickstart")
    """Folder for everything that is made; a second run goes on from what it holds."""
    dataset: Path | None = None
    """Dialogues to learn from; the example company's unless given."""
    held_out: Path | None = None
    """Dialogues to measure on, none of them in `dataset`; the example company's unless given."""
    suite: Path | None = None
    """Questions to ask before and after, with checks; the example company's unless given."""
    epochs: float = Field(default=1.5, gt=0)
    """Passes over the dialogues; 1 to 5 is usual for a small data set."""
    rank: int = Field(default=16, ge=1)
    """Rank of the LoRA adapter."""
    lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate; high, because the model is small and the data little."""
    max_length: int = Field(default=256, ge=32)
    """Tokens of a packed row, which is an optimiser step; longer dialogues are left out."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `npu`."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to serve on, on this machine alone; 0 takes a free one."""


class Answer(BaseModel, frozen=True):
    """One question and its answers before and after tuning."""

    question: str
    before: str
    after: str
    """What the tuned model answered over HTTP."""


class QuickstartResult(Result, frozen=True):
    """What came of it."""

    loss_before: float
    """Held-out loss of the model as it was, in nats per target token."""
    loss_after: float
    """The same of the tuned and merged model."""
    seconds: float
    """Work of this run, in seconds of wall-clock time, without downloads."""
    served: bool
    """Whether the tuned model answered every question over HTTP."""
    answers: list[Answer]
    checks_before: int
    """Questions whose answer held the facts that it must, before tuning."""
    checks_after: int
    """The same for the answers that came over HTTP after it."""
    train_dialogues: int
    held_out_dialogues: int
    reused: list[str]
    """Stages that an earlier run had done already."""
    stage_seconds: dict[str, float]
    """Where the seconds went; downloads are in none of them."""
    download_seconds: float
    client: str
    """What asked the questions: `openai VERSION`, or `urllib` where that package is missing."""
    adapter: Path
    model: Path
    """The merged checkpoint."""
    report: Path
    """The evaluation, for a browser."""

    def text(self) -> RenderableType:
        """The summary, the answers, and how to do the same with one's own data."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        facts = Table(show_header=False, box=None)
        for name, value in self._facts():
            facts.add_row(name, value)
        answers = Table(show_lines=True)
        for name in ("question", "before", "after"):
            answers.add_column(name, overflow="fold")  # Chinese has no spaces to break at
        for item in self.answers:
            answers.add_row(Text(item.question), Text(item.before), Text(item.after))
        return Group(answers, "", facts, "", Text(self._commands()))

    def _facts(self) -> list[tuple[str, str]]:
        change = 100 * (self.loss_after / self.loss_before - 1)
        total = len(self.answers)
        return [
            ("held-out loss", f"{self.loss_before:.3f} -> {self.loss_after:.3f} ({change:+.0f} %)"),
            ("answers with the facts", f"{self.checks_before} -> {self.checks_after} of {total}"),
            ("learned from", f"{self.train_dialogues} dialogues"),
            ("measured on", f"{self.held_out_dialogues} dialogues that were not learned from"),
            ("answered over HTTP", f"{'yes' if self.served else 'no'}, asked by {self.client}"),
            ("time", f"{self.seconds:.0f} s, and {self.download_seconds:.0f} s of downloads"),
            *([("reused", ", ".join(self.reused))] if self.reused else []),
            ("adapter", str(self.adapter)),
            ("model", str(self.model)),
            ("report", str(self.report)),
        ]

    @staticmethod
    def _activate() -> str:
        """What lets the shell find `dialoop`, where it does not yet."""
        return "" if shutil.which("dialoop") else f"  source {sys.prefix}/bin/activate\n"

    def _commands(self) -> str:
        return (
            "The same with your own data:\n"
            f"{self._activate()}"
            "  dialoop data inspect chats.csv\n"
            "  dialoop sft --model starter --dataset chats.csv --validation 0.1 -o tuned \\\n"
            "    --max_length 512 --accumulate 1 --lr 1e-3\n"
            "  dialoop evaluate --model tuned --compare starter --dataset other.csv -o report\n"
            "  dialoop merge --model tuned -o merged\n"
            "  dialoop serve --model merged\n"
            "Serve this one:\n"
            f"  dialoop serve --model {self.model}"
        )
