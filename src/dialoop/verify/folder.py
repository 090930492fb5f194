"""A form that lies on this machine: the ids it sends, its greedy answers, its log-probabilities.

T is the tokens of prompt and answer, N those of the answer, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialoop.chat.template import Template
from dialoop.core import device
from dialoop.core.errors import UserError
from dialoop.models import checkpoint
from dialoop.models.load import base_of, load_model, quantized_by, text_folder
from dialoop.verify.result import Compared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from dialoop.verify.material import Dialogue
    from dialoop.verify.spec import VerifyJob


@dataclass(frozen=True, slots=True)
class Answered:
    """A dialogue, as the first form sends and answers it."""

    dialogue: Dialogue
    prompt_ids: list[int]
    answer_ids: list[int]
    """Greedy, without the end token; the end token alone where the answer is empty."""
    logps: NDArray[np.float64]
    """(N, V) after each token before."""
    text: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A loaded form."""

    name: str
    template: Template
    model: PreTrainedModel
    job: VerifyJob

    @classmethod
    def open(cls, name: str, folder: Path, job: VerifyJob) -> Folder:
        """Load a checkpoint, adapter or quantized folder.

        Raises:
            UserError: it is damaged.
            MachineError: a package or memory is missing.
        """
        template = Template.from_folder(text_folder(folder))
        where = device.find(job.device)
        return cls(name, template, load_model(folder, device=where, dtype=job.dtype).eval(), job)

    def answer(self, dialogue: Dialogue) -> Answered:
        """Send a dialogue and answer it."""
        prompt = self.template.prompt_ids(dialogue.messages, dialogue.tools)
        ids = self._greedy(prompt)
        return Answered(dialogue, prompt, ids, self._logps(prompt, ids), self._text(ids))

    def compare(self, first: Answered, reference: str) -> Compared:
        """The same dialogue here.

        Raises:
            UserError: other ids are sent; the message names the first one.
        """
        dialogue = first.dialogue
        prompt = self.template.prompt_ids(dialogue.messages, dialogue.tools)
        refuse_drift(
            dialogue.name,
            (reference, self.name),
            (first.prompt_ids, prompt),
            self.template,
        )
        ids = self._greedy(prompt)
        told = self._logps(prompt, first.answer_ids)
        gaps = [
            abs(told[n, token] - first.logps[n, token]) for n, token in enumerate(first.answer_ids)
        ]
        return Compared(
            dialogue=dialogue.name,
            answer=self._text(ids),
            is_same=ids == first.answer_ids,
            first_nats=float(gaps[0]),
            mean_nats=float(sum(gaps) / len(gaps)),
            max_nats=float(max(gaps)),
            differs=self._parting(first, ids),
        )

    def _parting(self, first: Answered, ids: list[int]) -> str:
        """Where two greedy answers part, and how near the two tokens were to the first form."""
        pairs = zip(first.answer_ids, ids, strict=False)
        at = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
        if at is None:
            if len(ids) == len(first.answer_ids):
                return ""
            return f"one ends after {min(len(ids), len(first.answer_ids))} tokens"
        a, b = first.answer_ids[at], ids[at]
        gap = first.logps[at, a] - first.logps[at, b]
        shown = self.template.tokenizer.decode
        return (
            f"answers part at token {at}: {shown([a], skip_special=False)!r} and "
            f"{shown([b], skip_special=False)!r}, {gap:.3f} nats apart in the first form"
        )

    def _greedy(self, prompt: list[int]) -> list[int]:
        import torch

        limit = self.template.tokenizer.max_length
        if limit is not None and len(prompt) + self.job.max_new_tokens > limit:
            raise UserError(
                f"a dialogue of {len(prompt)} tokens and its answer do not fit the {limit} of "
                f"`{self.name}`",
                hint="shorten the dialogue or lower `--max_new_tokens`",
            )
        ids = torch.tensor([prompt], device=self.model.device)
        stops = list(self.template.stop_ids)
        with torch.inference_mode():
            out: Any = self.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.job.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        new: list[int] = out[0, len(prompt) :].tolist()
        end = next((n for n, token in enumerate(new) if token in stops), len(new))
        return new[:end] or new[:1]

    def _logps(self, prompt: list[int], answer: Sequence[int]) -> NDArray[np.float64]:
        import torch

        ids = torch.tensor([[*prompt, *answer[:-1]]], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 :]  # (N, V)
        return logits.double().log_softmax(-1).cpu().numpy()

    def _text(self, ids: list[int]) -> str:
        return self.template.tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}").strip()


def kind_of(folder: Path) -> str:
    """What form a folder holds."""
    base = base_of(folder) if checkpoint.is_adapter(folder) else folder
    packed = quantized_by(base)
    if checkpoint.is_adapter(folder):
        return f"adapter on {packed}" if packed else "adapter"
    return packed or "whole"


def is_quantized(folder: Path) -> bool:
    """Whether a folder's weights are."""
    return quantized_by(base_of(folder) if checkpoint.is_adapter(folder) else folder) is not None


def refuse_drift(
    dialogue: str,
    names: tuple[str, str],
    ids: tuple[Sequence[int], Sequence[int]],
    template: Template,
) -> None:
    """Check that two forms send the same ids.

    Raises:
        UserError: they do not; the message names the first differing token.
    """
    one, two = ids
    if list(one) == list(two):
        return
    at = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
    at = min(len(one), len(two)) if at is None else at

    def shown(tokens: Sequence[int]) -> str:
        if at >= len(tokens):
            return "the end"
        return f"{template.tokenizer.decode([tokens[at]], skip_special=False)!r} ({tokens[at]})"

    before = template.tokenizer.decode(list(one[max(0, at - 8) : at]), skip_special=False)
    raise UserError(
        f"dialogue `{dialogue}`: the forms send different ids: token {at} is {shown(one)} in "
        f"`{names[0]}` and {shown(two)} in `{names[1]}`, after {before!r}",
        hint="give the other form the tokenizer and chat template of the first one",
    )
