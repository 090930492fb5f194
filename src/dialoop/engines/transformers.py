"""transformers as an engine: any causal model, batched by joining and leaving between steps.

One left-padded batch is decoded a token at a time. A new request is read alone and its keys and
values are padded into the batch; one that has ended is taken out and the padding that nobody needs
any more is cut. It is our own small loop, since transformers' continuous batching attends over
everybody's tokens on a CPU and is slower there than padding (measured: 72 against 137 tokens/s at 8
requests of a 135M model on 2 cores).

B requests, T past tokens, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dialoop.core.device import find
from dialoop.core.errors import DialoopError, MachineError
from dialoop.engines import Delta, EngineInfo, Request, Sampling
from dialoop.models.load import load_model

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel

    from dialoop.engines.worker import Backend, WorkerJob

PREFILL_TOKENS = 1024
"""Prompt tokens read between two decoding steps, beside at least one whole prompt: bounds the pause
that a newcomer gives to the others."""


def open_backend(job: WorkerJob) -> Backend:
    """Load the model.

    Raises:
        MachineError: torch or transformers is missing.
        UserError: the checkpoint is not whole.
    """
    try:
        import torch
        import transformers  # noqa: F401  told apart here, before a model is touched
    except ModuleNotFoundError as error:
        raise MachineError(
            f"the transformers engine needs the package `{error.name}`",
            hint="pip install 'dialoop[train]'",
        ) from error
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(mode=False)
    model = load_model(Path(job.adapter or job.folder), device=find(job.device), dtype=job.dtype)
    return TransformersBackend(model, job)


@dataclass(slots=True)
class _Row:
    """One request in the batch."""

    key: int
    request: Request
    generator: Generator
    length: int = 0
    """Tokens whose keys and values are in the cache."""
    ids: list[int] = field(default_factory=list[int])
    """Generated so far."""


class TransformersBackend:
    """A worker backend over one transformers model."""

    def __init__(self, model: PreTrainedModel, job: WorkerJob) -> None:
        self.info = EngineInfo(
            "transformers", job.max_length, job.dtype, str(model.device), job.threads
        )
        self._model = model
        self._max_concurrent = job.max_concurrent
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._past: list[tuple[Tensor, Tensor]] = []
        """Keys and values by layer, (B, H, T, D), padded on the left."""

    def add(self, key: int, request: Request) -> None:
        """Queue a request."""
        import torch

        seed = request.sampling.seed
        generator = torch.Generator(device=self._model.device)
        generator.manual_seed(secrets.randbits(63) if seed is None else seed)
        self._waiting.append(_Row(key, request, generator))

    def abort(self, key: int) -> None:
        """Drop a request wherever it is."""
        self._waiting = deque(row for row in self._waiting if row.key != key)
        self._keep([row.key != key for row in self._rows])

    def has_work(self) -> bool:
        """Whether any request is open."""
        return bool(self._waiting or self._rows)

    def step(self) -> list[tuple[int, Delta | DialoopError]]:
        """Decode one token for every row, then let newcomers in."""
        out: list[tuple[int, Delta | DialoopError]] = []
        if self._rows:
            logits = self._decode()
            taken = [self._take(row, of) for row, of in zip(self._rows, logits, strict=True)]
            self._keep([delta.finish is None for _, delta in taken])
            out += taken
        budget = PREFILL_TOKENS
        while self._waiting and budget > 0 and len(self._rows) < self._max_concurrent:
            row = self._waiting.popleft()
            budget -= len(row.request.prompt_ids)
            out.append(self._prefill(row))
        return out

    def _decode(self) -> Tensor:
        """Logits of the next token of every row, (B, V)."""
        import torch
        from transformers import DynamicCache

        device = self._model.device
        width = self._past[0][0].shape[2]
        lengths = torch.tensor([row.length for row in self._rows], device=device)
        columns = torch.arange(width + 1, device=device)
        output = self._model(
            input_ids=torch.tensor([[row.ids[-1]] for row in self._rows], device=device),
            attention_mask=(columns[None] >= width - lengths[:, None]).long(),  # (B, T + 1)
            position_ids=lengths[:, None],
            past_key_values=DynamicCache(ddp_cache_data=self._past),
            use_cache=True,
        )
        self._past = _tensors(output.past_key_values)
        for row in self._rows:
            row.length += 1
        return output.logits[:, -1]  # (B, V)

    def _prefill(self, row: _Row) -> tuple[int, Delta]:
        """Read one prompt and choose its first token; it joins the batch unless that ended it."""
        import torch
        from transformers import DynamicCache

        ids = torch.tensor([row.request.prompt_ids], device=self._model.device)
        output = self._model(
            input_ids=ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
        )
        row.length = ids.shape[1]
        key, delta = self._take(row, output.logits[0, -1])
        if delta.finish is None:
            self._past = _join(self._past, _tensors(output.past_key_values))
            self._rows.append(row)
        return key, delta

    def _take(self, row: _Row, logits: Tensor) -> tuple[int, Delta]:
        token = choose(logits, row.request.sampling, row.ids, row.generator)
        if token in row.request.stop_ids:
            return row.key, Delta((), "stop")
        row.ids.append(token)
        is_full = len(row.ids) >= row.request.sampling.max_tokens
        return row.key, Delta((token,), "length" if is_full else None)

    def _keep(self, is_kept: list[bool]) -> None:
        """Take rows out of the batch, and the padding that no row needs any more."""
        if all(is_kept):
            return
        self._rows = [row for row, kept in zip(self._rows, is_kept, strict=True) if kept]
        if not self._rows:
            self._past = []
            return
        start = self._past[0][0].shape[2] - max(row.length for row in self._rows)
        chosen = [n for n, kept in enumerate(is_kept) if kept]
        self._past = [(k[chosen, :, start:], v[chosen, :, start:]) for k, v in self._past]


def choose(logits: Tensor, sampling: Sampling, generated: list[int], generator: Generator) -> int:
    """The next token.

    Args:
        logits: of the next token, (V,).
        sampling: how to choose.
        generated: the answer so far, which penalties look at.
        generator: the request's own source of chance.
    """
    import torch

    logits = _penalise(logits.float(), sampling, generated)
    if sampling.temperature == 0:
        return int(logits.argmax())
    values, order = (logits / sampling.temperature).sort(descending=True)
    if sampling.top_k:
        values, order = values[: sampling.top_k], order[: sampling.top_k]
    p = values.softmax(-1)
    is_in = p.cumsum(-1) - p < sampling.top_p  # the token that crosses the line is in
    return int(order[torch.multinomial(p * is_in, 1, generator=generator)])


def _penalise(logits: Tensor, sampling: Sampling, generated: list[int]) -> Tensor:
    if not generated or not (sampling.presence_penalty or sampling.frequency_penalty):
        return logits
    import torch

    seen = torch.tensor(generated, device=logits.device)
    counts = torch.bincount(seen, minlength=logits.shape[0])
    taken = sampling.presence_penalty * (counts > 0) + sampling.frequency_penalty * counts
    return logits - taken


def _tensors(cache: object) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of a cache, by layer.

    Raises:
        MachineError: the model remembers in another way, such as a state space.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = cache.layers if isinstance(cache, DynamicCache) else [None]
    plain = [layer for layer in layers if isinstance(layer, DynamicLayer) and not layer.is_sliding]
    if len(plain) == len(layers):
        return [(cast("Tensor", x.keys), cast("Tensor", x.values)) for x in plain]
    raise MachineError(
        f"the embedded engine cannot batch a model whose cache is {type(cache).__name__}",
        hint="serve this model with an external engine",
    )


def _join(
    past: list[tuple[Tensor, Tensor]], new: list[tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Stack two batches, the shorter one padded on the left."""
    if not past:
        return new
    return [(_stack(k, a), _stack(v, b)) for (k, v), (a, b) in zip(past, new, strict=True)]


def _stack(one: Tensor, other: Tensor) -> Tensor:
    import torch
    from torch.nn.functional import pad

    width = max(one.shape[2], other.shape[2])
    both = [pad(x, (0, 0, width - x.shape[2], 0)) for x in (one, other)]
    return torch.cat(both)  # (B + 1, H, T, D)
