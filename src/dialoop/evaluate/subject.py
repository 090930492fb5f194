"""A loaded checkpoint under measurement: its held-out loss and its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoop.chat.template import Template
from dialoop.core import device, env
from dialoop.core.errors import UserError
from dialoop.core.events import Progress
from dialoop.data.pack import best_fit
from dialoop.data.tokenize import tokenize
from dialoop.evaluate.generate import Generator
from dialoop.evaluate.tasks import HeldOut
from dialoop.models.load import load_model, text_folder
from dialoop.train.view import packed_nll, use_packed_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.chat.message import Message
    from dialoop.core.events import Event
    from dialoop.data.load import SampleSet
    from dialoop.evaluate.spec import EvaluateJob


@dataclass(frozen=True, slots=True)
class LoadedSubject:
    """A checkpoint in memory."""

    model: PreTrainedModel
    template: Template
    job: EvaluateJob
    emit: Callable[[Event], None]

    def held_out(self, samples: SampleSet, row_tokens: int) -> HeldOut:
        """The loss of records, by training's own tokenisation, packing and loss.

        Raises:
            UserError: no record is left to score.
        """
        rows = tokenize(
            samples,
            self.template,
            max_length=self.job.max_length,
            overlong="drop",
            workers=env.num_cpus(),
            cache=env.home() / "tokens",
            emit=self.emit,
            digest=samples.digest,
        )
        use_packed_attention(self.model)
        bins = best_fit(rows.lengths, max(row_tokens, int(rows.lengths.max())))
        nats = targets = 0.0
        for n, members in enumerate(bins):
            self.emit(Progress("held-out loss", n, len(bins), "packed rows"))
            more, weight = packed_nll(self.model, [[rows.unit(i) for i in members]])
            nats, targets = nats + more, targets + weight
        self.emit(Progress("held-out loss", len(bins), len(bins), "packed rows"))
        return HeldOut(nats, targets, len(rows), len(rows.dropped))

    def answers(self, dialogues: Sequence[Sequence[Message]]) -> list[str]:
        """The answer to each dialogue, in order.

        Raises:
            UserError: a dialogue and its answer do not fit the model.
        """
        prompts = [self.template.prompt_ids(dialogue) for dialogue in dialogues]
        longest = max(map(len, prompts), default=0) + self.job.generation.max_new_tokens
        limit = self.model.config.max_position_embeddings
        if longest > limit:
            raise UserError(
                f"a question with its answer may take {longest} tokens; the model takes {limit}",
                hint="shorten the question or lower `--max_new_tokens`",
            )
        generator = Generator(self.model, self.template.stop_ids, self.job.generation)
        answers = generator.answer(prompts, self.emit)
        return [self._text(ids) for ids in answers]

    def _text(self, ids: list[int]) -> str:
        """The answer's text; of a character that the length limit cut in two, nothing."""
        return self.template.tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}").strip()


def open_subject(folder: Path, job: EvaluateJob, emit: Callable[[Event], None]) -> LoadedSubject:
    """Load a checkpoint: whole, merged or adapter.

    Raises:
        UserError: the checkpoint is damaged.
        MachineError: the device is not here.
    """
    template = Template.from_folder(text_folder(folder))
    model = load_model(folder, device=device.find(job.device), dtype=job.dtype)
    return LoadedSubject(model.eval(), template, job, emit)
