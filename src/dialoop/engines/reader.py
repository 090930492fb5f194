"""Models that read: embeddings and rerankers, by transformers, many texts in one batch.

A batch is padded behind its texts, which neither a decoder's last token nor an encoder's mask sees.

B texts, T tokens of the longest, D width.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dialoop.chat.template import Template
from dialoop.core.device import find
from dialoop.core.errors import DialoopError, MachineError, UserError
from dialoop.engines import Delta, EngineInfo, Request
from dialoop.models import embeddings, heads
from dialoop.models.load import load_model, text_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.engines.worker import Backend, WorkerJob

BATCH_TOKENS = 8192
"""Of a batch, padding included; a longer text is read alone."""


def open_backend(job: WorkerJob) -> Backend:
    """Load the model.

    Raises:
        MachineError: torch or transformers is missing.
        UserError: the checkpoint is not whole, or ends in something else.
    """
    try:
        import torch
        import transformers  # noqa: F401  told apart here, before a model is touched
    except ModuleNotFoundError as error:
        raise MachineError(
            f"reading texts needs the package `{error.name}`", hint="pip install 'dialoop[train]'"
        ) from error
    torch.set_num_threads(job.threads)
    folder = Path(job.adapter or job.folder)
    head = "score" if job.task == "rerank" else "none"
    model = load_model(folder, device=find(job.device), dtype=job.dtype, head=head)
    heads.set_padding(model, Template.from_folder(text_folder(folder)))
    return ReaderBackend(model, embeddings.pooling_of(text_folder(Path(job.folder))), job)


class ReaderBackend:
    """A worker backend over one model that reads.

    Args:
        model: one that ends in hidden states or in scores.
        pooling: how hidden states become one vector.
        job: what was asked for.
    """

    def __init__(self, model: PreTrainedModel, pooling: embeddings.Pooling, job: WorkerJob) -> None:
        self.info = EngineInfo(
            "reader", job.max_length, job.dtype, str(model.device), job.threads, job.task
        )
        self._model = model
        self._pooling = pooling
        self._max_concurrent = job.max_concurrent
        self._waiting: deque[tuple[int, Request]] = deque()

    def add(self, key: int, request: Request) -> None:
        """Queue a text."""
        self._waiting.append((key, request))

    def abort(self, key: int) -> None:
        """Drop a text that waits."""
        self._waiting = deque(item for item in self._waiting if item[0] != key)

    def has_work(self) -> bool:
        """Whether any text waits."""
        return bool(self._waiting)

    def load_adapter(self, name: str, folder: str) -> None:
        """Refused."""
        raise UserError(
            f"adapter `{name}` (`{folder}`): models that read take none by request",
            hint="serve the adapter itself, or merge it",
        )

    def unload_adapter(self, name: str) -> list[int]:
        """Refused, as none can be there."""
        raise UserError(f"no adapter `{name}` is loaded")

    def step(self) -> list[tuple[int, Delta | DialoopError]]:
        """Read one batch."""
        import torch

        with torch.no_grad():
            return self._step()

    def _step(self) -> list[tuple[int, Delta | DialoopError]]:
        batch = [self._waiting.popleft()]
        longest = len(batch[0][1].prompt_ids)
        while self._waiting and len(batch) < self._max_concurrent:
            longest = max(longest, len(self._waiting[0][1].prompt_ids))
            if longest * (len(batch) + 1) > BATCH_TOKENS:
                break
            batch.append(self._waiting.popleft())
        vectors = self._read([request for _, request in batch]).tolist()
        return [
            (key, Delta((), "stop", (), tuple(vector)))
            for (key, _), vector in zip(batch, vectors, strict=True)
        ]

    def _read(self, requests: list[Request]) -> Tensor:
        """(B, D) vectors of length 1, or (B, 1) scores; float32."""
        import torch
        from torch.nn.functional import normalize

        model = self._model
        lengths = torch.tensor([len(r.prompt_ids) for r in requests], device=model.device)
        places = torch.arange(int(lengths.max()), device=model.device)  # (T,)
        mask = places < lengths[:, None]  # (B, T)
        padding = model.config.pad_token_id or 0
        ids = torch.full(mask.shape, padding, device=model.device)
        ids[mask] = torch.tensor([n for r in requests for n in r.prompt_ids], device=model.device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
        if model.config.model_type in heads.ENCODERS and model.config.type_vocab_size > 1:
            second = torch.tensor([r.second or len(places) for r in requests], device=model.device)
            inputs["token_type_ids"] = ((places >= second[:, None]) & mask).long()
        if self.info.task == "rerank":
            return cast("Tensor", model(**inputs).logits).float()[:, :1]
        states = cast("Tensor", model(**inputs).last_hidden_state).float()  # (B, T, D)
        return normalize(self._pooled(states, mask, lengths), dim=-1)

    def _pooled(self, states: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) one vector of each text."""
        if self._pooling == "cls":
            return states[:, 0]
        if self._pooling == "mean":
            return (states * mask[..., None]).sum(1) / lengths[:, None]
        import torch

        return states[torch.arange(len(states), device=states.device), lengths - 1]
