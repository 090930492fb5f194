"""ChatModel, the Python face: load any checkpoint, chat, stream, generate as transformers does."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

from dialoop.chat.message import Message, from_openai, message
from dialoop.chat.template import Template
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.models import sources
from dialoop.models.load import load_model, text_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dialoop.models.spec import Dtype

Dialogue = "str | Sequence[Message | dict[str, Any]]"


@dataclass(frozen=True)
class ChatModel:
    """A loaded checkpoint that answers; made by `from_pretrained`."""

    model: PreTrainedModel
    template: Template
    folder: Path
    """Where the tokenizer and template lie."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str = "auto", dtype: Dtype = "auto"
    ) -> ChatModel:
        """Load a full, adapter, merged or quantized checkpoint; it finds out which.

        Args:
            name: a folder, or anything that `dialoop models pull` takes.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `npu`.
            dtype: of the weights; `auto` is bf16 where the device is fast at it, else fp32.

        Raises:
            UserError: no such model, or a damaged one.
            MachineError: it does not fit, or cannot be fetched.
        """
        folder = sources.resolve(str(name))
        model = load_model(folder, device=find(device), dtype=dtype)
        texts = text_folder(folder)
        return cls(model, Template.from_folder(texts), texts)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Transformers' tokenizer: `model.tokenizer("text", return_tensors="pt")`."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def generate(self, **inputs: Any) -> Any:
        """Transformers' own `generate`, same arguments; tensors are moved to the model's device."""
        import torch

        moved = {
            name: value.to(self.model.device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        return self.model.generate(**moved)  # pyright: ignore[reportCallIssue]

    @overload
    def chat(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        stop: Sequence[str] = ...,
        stream: Literal[False] = ...,
    ) -> str: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        stop: Sequence[str] = ...,
        stream: Literal[True],
    ) -> Iterator[str]: ...

    def chat(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Answer a dialogue.

        Args:
            messages: the user's text, or messages in OpenAI's spelling, oldest first.
            max_new_tokens: at most so many tokens are generated, fewer where the context ends.
            temperature: 0 takes the likeliest token; usually 0 to 1.
            top_p: the share of probability that is drawn from, above 0 and at most 1.
            seed: makes the same draw again; None draws anew.
            stop: texts that end the answer and are not part of it.
            stream: give pieces of text as they come.

        Raises:
            UserError: a value is out of range, or the prompt fills the model's context.
        """
        _check(max_new_tokens, temperature, top_p)
        prompt = self.template.prompt_ids(_dialogue(messages))
        room = _room(self.model, len(prompt))
        options = _options(self.template, min(max_new_tokens, room), temperature, top_p)
        pieces = _cut(self._stream(prompt, options, seed), tuple(stop))
        return pieces if stream else "".join(pieces)

    def _stream(
        self, prompt: list[int], options: dict[str, Any], seed: int | None
    ) -> Iterator[str]:
        """Text as it comes: the model runs in a thread, and ends when nobody listens any more."""
        out = _Streamer(len(prompt))
        thread = threading.Thread(target=_work, args=(self.model, prompt, options, seed, out))
        thread.start()
        decoder = self.template.tokenizer.stream()
        try:
            while (item := out.ids.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if item not in self.template.stop_ids and (text := decoder.push(item)):
                    yield text
            if text := decoder.finish():
                yield text
        finally:
            out.is_stopped.set()
            thread.join()


class _Streamer:
    """What transformers' `generate` puts token ids into (its streamer interface)."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.ids: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.is_stopped = threading.Event()
        self._num_prompt_tokens = num_prompt_tokens

    def put(self, value: Any) -> None:
        """Take the prompt first, then one token at a time."""
        ids: list[int] = value.reshape(-1).tolist()
        if self._num_prompt_tokens:
            self._num_prompt_tokens = 0
            return
        for number in ids:
            self.ids.put(number)

    def end(self) -> None:
        """The answer is whole."""
        self.ids.put(None)


def _work(
    model: PreTrainedModel,
    prompt: list[int],
    options: dict[str, Any],
    seed: int | None,
    out: _Streamer,
) -> None:
    import torch
    from transformers import StoppingCriteriaList

    ids = torch.tensor([prompt], device=model.device)

    def is_stopped(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        del scores
        return torch.full((len(input_ids),), out.is_stopped.is_set(), device=input_ids.device)

    accelerators = [] if model.device.type == "cpu" else [model.device]
    try:
        with torch.random.fork_rng(devices=accelerators, device_type=_rng_type(model.device)):
            torch.manual_seed(seed) if seed is not None else torch.seed()
            generate: Any = model.generate
            generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                streamer=out,
                stopping_criteria=StoppingCriteriaList([is_stopped]),
                **options,
            )
    except BaseException as error:  # noqa: BLE001 - handed to the thread that listens
        out.ids.put(error)


def _rng_type(device: Any) -> str:
    return "cuda" if device.type == "cpu" else device.type


def _options(
    template: Template, max_new_tokens: int, temperature: float, top_p: float
) -> dict[str, Any]:
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    ends = list(template.stop_ids)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0], **sampling
    )
    return {"generation_config": config}


def _cut(pieces: Iterator[str], stop: tuple[str, ...]) -> Iterator[str]:
    """Pass text on up to the first stop text; hold back what may be the beginning of one."""
    if not stop:
        yield from pieces
        return
    held = ""
    for piece in pieces:
        held += piece
        ends = [at for text in stop if (at := held.find(text)) >= 0]
        if ends:
            if min(ends):
                yield held[: min(ends)]
            return
        keep = max(_overlap(held, text) for text in stop)
        if safe := held[: len(held) - keep]:
            yield safe
        held = held[len(held) - keep :]
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in sizes if text.endswith(stop[:n])), 0)


def _dialogue(messages: str | Sequence[Message | dict[str, Any]]) -> list[Message]:
    if isinstance(messages, str):
        return [message("user", messages)]
    if not messages:
        raise UserError("messages: the dialogue is empty", hint="give at least a user message")
    return [
        item if isinstance(item, Message) else from_openai(item, f"messages[{n}]")
        for n, item in enumerate(messages)
    ]


def _check(max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens: {max_new_tokens} is less than 1")
    if temperature < 0:
        raise UserError(f"temperature: {temperature} is negative", hint="use 0 to 2")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p: {top_p} is not above 0 and at most 1")


def _room(model: PreTrainedModel, num_prompt_tokens: int) -> int:
    limit = int(model.config.get_text_config().max_position_embeddings)
    if num_prompt_tokens >= limit:
        raise UserError(
            f"the dialogue has {num_prompt_tokens} tokens and the model reads {limit}",
            hint="shorten the dialogue",
        )
    return limit - num_prompt_tokens
