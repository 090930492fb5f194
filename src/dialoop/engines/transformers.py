"""transformers as an engine: any causal model, batched by joining and leaving between steps.

One left-padded batch is decoded a token at a time. A new request is read alone and its keys and
values are padded into the batch; one that has ended is taken out and the padding that nobody needs
any more is cut. Tokens that an earlier prompt or answer began with are not read again. It is our
own small loop, since transformers' continuous batching attends over
everybody's tokens on a CPU and is slower there than padding (measured: 72 against 137 tokens/s at 8
requests of a 135M model on 2 cores).

B requests, T past tokens, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import copy
import secrets
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.device import find
from dialoop.core.errors import DialoopError, MachineError
from dialoop.engines import Delta, EngineInfo, Request, Sampling, TokenLogprob, unknown_adapter
from dialoop.engines.grammar import Grammars
from dialoop.engines.prefixes import Prefixes
from dialoop.models.load import attach_adapter, load_model, text_folder

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel

    from dialoop.chat.tokenizer import Tokenizer
    from dialoop.engines.grammar import Allowed
    from dialoop.engines.prefixes import Layers
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
    model = load_model(Path(job.adapter or job.folder), device=find(job.device), dtype=job.dtype)
    return TransformersBackend(model, job)


@dataclass(slots=True)
class _Row:
    """One request in the batch."""

    key: int
    request: Request
    generator: Generator
    allowed: Allowed | None
    """What its schema lets come next."""
    length: int = 0
    """Tokens whose keys and values are in the cache."""
    ids: list[int] = field(default_factory=list[int])
    """Generated so far."""


class TransformersBackend:
    """A worker backend over one transformers model and the adapters on it.

    An adapter's model is a tree of modules of its own over the base's very tensors, so that the
    base stays the base whatever is loaded. The requests of one model are decoded together.
    """

    def __init__(self, model: PreTrainedModel, job: WorkerJob) -> None:
        self.info = EngineInfo(
            "transformers", job.max_length, job.dtype, str(model.device), job.threads
        )
        self._job = job
        self._base = model
        self._groups: dict[str | None, _Group] = {None: self._group(model)}
        self._waiting: deque[_Row] = deque()
        for name, folder in job.adapters.items():
            self.load_adapter(name, folder)

    def add(self, key: int, request: Request) -> None:
        """Queue a request.

        Raises:
            UserError: its adapter is not loaded, or its schema is none.
            MachineError: the package that reads schemas is missing.
        """
        import torch

        group = self._groups.get(request.adapter)
        if group is None:
            raise unknown_adapter(request.adapter, self._groups)
        seed = request.sampling.seed
        generator = torch.Generator(device=self._base.device)
        generator.manual_seed(secrets.randbits(63) if seed is None else seed)
        allowed = None
        if request.schema is not None:
            allowed = group.grammars.start(request.schema, request.stop_ids)
        self._waiting.append(_Row(key, request, generator, allowed))

    def abort(self, key: int) -> None:
        """Drop a request wherever it is."""
        self._waiting = deque(row for row in self._waiting if row.key != key)
        for group in self._groups.values():
            group.keep([row.key != key for row in group.rows])

    def has_work(self) -> bool:
        """Whether any request is open."""
        return bool(self._waiting) or any(group.rows for group in self._groups.values())

    def load_adapter(self, name: str, folder: str) -> None:
        """Put an adapter beside the base, under a name.

        Raises:
            UserError: it is for another base, or damaged.
        """
        shared = {id(tensor): tensor for tensor in self._base.parameters()}
        shared |= {id(tensor): tensor for tensor in self._base.buffers()}
        model = copy.deepcopy(self._base, shared)
        attach_adapter(model, Path(folder))
        self._groups[name] = self._group(model.eval())

    def unload_adapter(self, name: str) -> list[int]:
        """Forget an adapter; returns the keys of its open requests, which end."""
        group = self._groups.pop(name)
        waiting = [row for row in self._waiting if row.request.adapter == name]
        self._waiting = deque(row for row in self._waiting if row.request.adapter != name)
        return [row.key for row in (*group.rows, *waiting)]

    def step(self) -> list[tuple[int, Delta | DialoopError]]:
        """Decode one token for every row, then let newcomers in."""
        import torch

        with torch.no_grad():
            return self._step()

    def _step(self) -> list[tuple[int, Delta | DialoopError]]:
        out: list[tuple[int, Delta | DialoopError]] = []
        for group in self._groups.values():
            out += group.decode()
        budget = PREFILL_TOKENS
        num_open = sum(len(group.rows) for group in self._groups.values())
        while self._waiting and budget > 0 and num_open < self._job.max_concurrent:
            row = self._waiting.popleft()
            group = self._groups[row.request.adapter]
            num_read, delta = group.prefill(row)
            budget -= num_read
            num_open += delta.finish is None
            out.append((row.key, delta))
        return out

    def _group(self, model: PreTrainedModel) -> _Group:
        grammars = Grammars(self._tokenizer, model.config.get_text_config().vocab_size)
        return _Group(model, grammars, Prefixes(self._job.prefix_tokens))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(text_folder(Path(self._job.adapter or self._job.folder)))


class _Group:
    """The requests of one model, in one left-padded batch."""

    def __init__(self, model: PreTrainedModel, grammars: Grammars, prefixes: Prefixes) -> None:
        self.rows: list[_Row] = []
        self.grammars = grammars
        self._model = model
        self._prefixes = prefixes
        self._past: Layers = []
        """Keys and values by layer, (B, H, T, D), padded on the left."""

    def decode(self) -> list[tuple[int, Delta | DialoopError]]:
        """One more token for every row."""
        if not self.rows:
            return []
        logits = self._decode()
        deltas = [self._take(row, of) for row, of in zip(self.rows, logits, strict=True)]
        out = [(row.key, delta) for row, delta in zip(self.rows, deltas, strict=True)]
        for number, delta in enumerate(deltas):
            if delta.finish is not None:
                self._remember(number)
        self.keep([delta.finish is None for delta in deltas])
        return list(out)

    def _decode(self) -> Tensor:
        """Logits of the next token of every row, (B, V)."""
        import torch
        from transformers import DynamicCache

        device = self._model.device
        width = self._past[0][0].shape[2]
        lengths = torch.tensor([row.length for row in self.rows], device=device)
        columns = torch.arange(width + 1, device=device)
        output = self._model(
            input_ids=torch.tensor([[row.ids[-1]] for row in self.rows], device=device),
            attention_mask=(columns[None] >= width - lengths[:, None]).long(),  # (B, T + 1)
            position_ids=lengths[:, None],
            past_key_values=DynamicCache(ddp_cache_data=self._past),
            use_cache=True,
        )
        self._past = _tensors(output.past_key_values)
        for row in self.rows:
            row.length += 1
        return output.logits[:, -1]  # (B, V)

    def prefill(self, row: _Row) -> tuple[int, Delta]:
        """Read one prompt and choose its first token; it joins the batch unless that ended it.

        Returns:
            How many tokens were read, which are those that no earlier prompt had, and the delta.
        """
        import torch
        from transformers import DynamicCache

        prompt = row.request.prompt_ids
        known, past = self._prefixes.find(prompt)
        ids = torch.tensor([prompt[known:]], device=self._model.device)
        output = self._model(
            input_ids=ids,
            past_key_values=DynamicCache(ddp_cache_data=past) if past else DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
        row.length = len(prompt)
        layers = _tensors(output.past_key_values)
        self._prefixes.put(prompt, layers)
        delta = self._take(row, output.logits[0, -1])
        if delta.finish is None:
            self._past = _join(self._past, layers)
            self.rows.append(row)
        return ids.shape[1], delta

    def _take(self, row: _Row, logits: Tensor) -> Delta:
        sampling, allowed = row.request.sampling, row.allowed
        masked = logits.float() if allowed is None else allowed.masked(logits.float())
        token = choose(masked, sampling, row.ids, row.generator)
        if token in row.request.stop_ids:
            return Delta((), "stop")
        row.ids.append(token)
        told = () if sampling.logprobs is None else (_logprob(logits, token, sampling.logprobs),)
        if allowed is not None:
            allowed.take(token)
            if allowed.is_whole:
                return Delta((token,), "stop", told)
        is_full = len(row.ids) >= sampling.max_tokens
        return Delta((token,), "length" if is_full else None, told)

    def _remember(self, number: int) -> None:
        """Keep what a row has read, for a dialogue that goes on from it."""
        row = self.rows[number]
        start = self._past[0][0].shape[2] - row.length
        known = (*row.request.prompt_ids, *row.ids)[: row.length]
        # copies: a view would keep the whole batch in memory
        own = [(k[number, None, :, start:], v[number, None, :, start:]) for k, v in self._past]
        self._prefixes.put(known, [(k.clone(), v.clone()) for k, v in own])

    def keep(self, is_kept: list[bool]) -> None:
        """Take rows out of the batch, and the padding that no row needs any more."""
        if all(is_kept):
            return
        self.rows = [row for row, kept in zip(self.rows, is_kept, strict=True) if kept]
        if not self.rows:
            self._past = []
            return
        start = self._past[0][0].shape[2] - max(row.length for row in self.rows)
        chosen = [n for n, kept in enumerate(is_kept) if kept]
        self._past = [(k[chosen, :, start:], v[chosen, :, start:]) for k, v in self._past]


def _logprob(logits: Tensor, token: int, num: int) -> TokenLogprob:
    values = logits.float().log_softmax(-1)
    top = values.topk(num)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprob(float(values[token]), tuple(pairs))


def choose(logits: Tensor, sampling: Sampling, generated: list[int], generator: Generator) -> int:
    """The next token.

    Args:
        logits: of the next token, (V,).
        sampling: how to choose.
        generated: the answer so far, which penalties look at.
        generator: the request's own source of chance.
    """
    import torch

    logits = _penalise(_biased(logits.float(), sampling), sampling, generated)
    if sampling.temperature == 0:
        return int(logits.argmax())
    values, order = (logits / sampling.temperature).sort(descending=True)
    if sampling.top_k:
        values, order = values[: sampling.top_k], order[: sampling.top_k]
    p = values.softmax(-1)
    is_in = p.cumsum(-1) - p < sampling.top_p  # the token that crosses the line is in
    return int(order[torch.multinomial(p * is_in, 1, generator=generator)])


def _biased(logits: Tensor, sampling: Sampling) -> Tensor:
    if not sampling.logit_bias:
        return logits
    import torch

    tokens, values = zip(*sampling.logit_bias, strict=True)
    out = logits.clone()
    out[list(tokens)] += torch.tensor(values, device=logits.device)
    return out


def _penalise(logits: Tensor, sampling: Sampling, generated: list[int]) -> Tensor:
    if not generated or not (sampling.presence_penalty or sampling.frequency_penalty):
        return logits
    import torch

    seen = torch.tensor(generated, device=logits.device)
    counts = torch.bincount(seen, minlength=logits.shape[0])
    taken = sampling.presence_penalty * (counts > 0) + sampling.frequency_penalty * counts
    return logits - taken


def _tensors(cache: object) -> Layers:
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


def _join(past: Layers, new: Layers) -> Layers:
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
