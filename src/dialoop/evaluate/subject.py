"""A loaded checkpoint under measurement: its held-out loss, answers, choices and vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dialoop.chat.template import Template
from dialoop.chat.tool_formats import json_call
from dialoop.core import device, env
from dialoop.core.errors import UserError
from dialoop.core.events import Progress
from dialoop.data.pack import best_fit
from dialoop.data.tokenize import tokenize
from dialoop.data.units import Unit
from dialoop.evaluate.generate import Generator
from dialoop.evaluate.tasks import HeldOut, Prompt, Reply
from dialoop.models.embeddings import pooling_of
from dialoop.models.load import load_model, text_folder
from dialoop.train.batch import Step, collate
from dialoop.train.view import View, row_nll, use_packed_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from dialoop.chat.message import Message
    from dialoop.core.events import Event
    from dialoop.data.load import SampleSet
    from dialoop.evaluate.spec import EvaluateJob
    from dialoop.models.heads import Head
    from dialoop.train.endpoint import Endpoint

ROW_TOKENS = 2048
"""Tokens of choices and texts to embed that are computed together."""


@dataclass(frozen=True)
class LoadedSubject:
    """A checkpoint on this machine, loaded when it is first asked."""

    folder: Path
    template: Template
    job: EvaluateJob
    emit: Callable[[Event], None]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The language model."""
        return self._load("tokens")

    @property
    def digest(self) -> str:
        """Of its tokenizer."""
        return self.template.tokenizer.digest

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
        found: dict[int, tuple[float, float]] = {}
        for n, members in enumerate(bins):
            self.emit(Progress("held-out loss", n, len(bins), "packed rows"))
            sums = row_nll(self.model, [rows.unit(i) for i in members])
            found.update(zip(members, sums, strict=True))
        self.emit(Progress("held-out loss", len(bins), len(bins), "packed rows"))
        ordered = tuple(found[n] for n in range(len(rows)))
        nats, targets = (sum(column) for column in zip(*ordered, strict=True))
        return HeldOut(nats, targets, len(rows), len(rows.dropped), ordered)

    def answers(self, dialogues: Sequence[Sequence[Message]]) -> list[str]:
        """The answer to each dialogue, in order.

        Raises:
            UserError: a dialogue and its answer do not fit the model.
        """
        return [self._text(ids) for ids in self._generate([Prompt(tuple(d)) for d in dialogues])]

    def replies(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """The answer to each prompt, in order, with the calls in it.

        Raises:
            UserError: a prompt and its answer do not fit the model.
        """
        return [Reply(*json_call.parse(self._text(ids))) for ids in self._generate(prompts)]

    def choices(
        self, dialogues: Sequence[Sequence[Message]], words: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Log p, among its words, that the answer to each dialogue begins with each of them.

        Raises:
            UserError: two words begin with the same token, or a dialogue does not fit the model.
        """
        use_packed_attention(self.model)
        units = [
            Unit((self.template.choice_row(dialogue, "", some),))
            for dialogue, some in zip(dialogues, words, strict=True)
        ]
        self._refuse_long(max(map(len, units), default=0))
        found: dict[int, list[float]] = {}
        for num in sorted({len(some) for some in words}):
            chosen = [n for n, some in enumerate(words) if len(some) == num]
            for members, batch in self._batches([units[n] for n in chosen], "choices"):
                logits = View(self.model).choice_logits(batch, num).log_softmax(1)
                places = [chosen[member] for member in members]
                found.update(zip(places, logits.tolist(), strict=True))
        return [found[n] for n in range(len(dialogues))]

    def vectors(self, texts: Sequence[str], before: str) -> NDArray[np.float32]:
        """(texts, width) the embedding of each text, of length 1.

        Raises:
            UserError: a text does not fit the model.
        """
        import torch
        import torch.nn.functional as F

        model = self._embedder
        use_packed_attention(model)
        units = [Unit((self.template.framed_row(before + text),)) for text in texts]
        self._refuse_long(max(map(len, units), default=0))
        pooling = pooling_of(text_folder(self.folder))
        found: dict[int, Any] = {}
        for members, batch in self._batches(units, "embed"):
            pooled = F.normalize(View(model).pooled(batch, pooling), dim=1)
            found.update(zip(members, pooled.cpu(), strict=True))
        return torch.stack([found[n] for n in range(len(texts))]).numpy()

    def num_tokens(self, text: str) -> int:
        """The tokens of a text."""
        return len(self.template.tokenizer.encode(text))

    def address(self) -> Endpoint:
        """None: a checkpoint is asked in this process.

        Raises:
            UserError: always.
        """
        raise UserError(
            "task `latency` measures an endpoint, and this is a checkpoint on this machine",
            hint="serve it (`dialoop serve`) and give `--endpoint URL`",
        )

    @cached_property
    def _embedder(self) -> PreTrainedModel:
        return self._load("none")

    def _load(self, head: Head) -> PreTrainedModel:
        where = device.find(self.job.device)
        return load_model(self.folder, device=where, dtype=self.job.dtype, head=head).eval()

    def _batches(self, units: list[Unit], task: str) -> Any:
        import torch

        where = next(self._loaded.parameters()).device
        lengths = [len(unit) for unit in units]
        bins = best_fit(lengths, max(ROW_TOKENS, *lengths)) if units else []
        for n, members in enumerate(bins):
            self.emit(Progress(task, n, len(bins), "packed rows"))
            some = [units[member] for member in members]
            with torch.inference_mode():
                yield members, collate(some, where, Step(1.0, len(some)))
        self.emit(Progress(task, len(bins), len(bins), "packed rows"))

    @property
    def _loaded(self) -> PreTrainedModel:
        return self.model if "model" in self.__dict__ else self._embedder

    def _generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        ids = [self.template.prompt_ids(p.messages, p.tools) for p in prompts]
        self._refuse_long(max(map(len, ids), default=0) + self.job.generation.max_new_tokens)
        generator = Generator(self.model, self.template.stop_ids, self.job.generation)
        return generator.answer(ids, self.emit)

    def _refuse_long(self, num_tokens: int) -> None:
        limit = self.template.tokenizer.max_length
        if limit is not None and num_tokens > limit:
            raise UserError(
                f"a question with its answer may take {num_tokens} tokens; the model takes {limit}",
                hint="shorten the question or lower `--max_new_tokens`",
            )

    def _text(self, ids: list[int]) -> str:
        """The answer's text; of a character that the length limit cut in two, nothing."""
        return self.template.tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}").strip()


def open_subject(folder: Path, job: EvaluateJob, emit: Callable[[Event], None]) -> LoadedSubject:
    """A checkpoint: whole, merged, adapter or quantized.

    Raises:
        UserError: the checkpoint is damaged.
        MachineError: the device is not here.
    """
    return LoadedSubject(folder, Template.from_folder(text_folder(folder)), job, emit)
