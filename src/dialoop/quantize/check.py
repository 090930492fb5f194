"""Check: the written checkpoint, read back by transformers, against the model it was made from.

T tokens, N measured tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dialoop.core.events import Progress
from dialoop.models import attention
from dialoop.models.families import register_all
from dialoop.models.load import load_model, quantized_by, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.core.device import Device
    from dialoop.core.events import Event
    from dialoop.models.spec import Dtype
    from dialoop.quantize.rows import PackedRow

CHUNK = 256
"""Measured tokens whose logits are computed at once."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same tokens."""

    source_perplexity: float
    perplexity: float
    agreement: float
    kl: float
    num_tokens: int


@torch.no_grad()
def compare(
    reference: Sequence[Tensor],
    source_head: Tensor,
    model: PreTrainedModel,
    rows: Sequence[PackedRow],
    emit: Callable[[Event], None],
) -> Comparison:
    """Measure a model beside the states of the one that it was made from.

    Args:
        reference: (T, D) normalised last states of the source, a tensor a row.
        source_head: (V, D), where the states are.
        model: the one that was written, read back; it attends within documents from here on.
        rows: what is measured on; the labelled tokens count, by their weights.
        emit: receives progress.
    """
    device = next(model.parameters()).device
    attention.register()
    model.set_attn_implementation(attention.NAME)
    head: Any = model.get_output_embeddings()
    sums = torch.zeros(5, dtype=torch.float64)
    for number, (row, known) in enumerate(zip(rows, reference, strict=True)):
        emit(Progress("compare", number, len(rows), "packed rows"))
        states = model.get_decoder()(**row.inputs(device)).last_hidden_state[0]  # (T, D)
        places = torch.from_numpy(row.labelled)
        targets = torch.from_numpy(row.ids)[places]
        weights = torch.from_numpy(row.weights)[places].double()
        for at, target, weight in zip(
            places.split(CHUNK), targets.split(CHUNK), weights.split(CHUNK), strict=True
        ):
            before = _log_probabilities(known[(at - 1).to(known.device)], source_head)
            after = _log_probabilities(states[(at - 1).to(device)], head.weight).to(before.device)
            sums += _sums(before, after, target.to(before.device), weight)
    emit(Progress("compare", len(rows), len(rows), "packed rows"))
    before, after, same, kl, weight = sums.tolist()
    return Comparison(
        math.exp(before / weight),
        math.exp(after / weight),
        same / weight,
        kl / weight,
        sum(len(row.labelled) for row in rows),
    )


def reload(folder: Path, device: Device, dtype: Dtype) -> PreTrainedModel:
    """The written checkpoint, as transformers reads it, not as our own layers do."""
    method = quantized_by(folder)
    if method == "bitsandbytes":
        return load_model(folder, device=device, dtype=dtype)
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - heavy

    register_all()
    config: Any = AutoConfig.from_pretrained(folder)
    config.quantization_config = config.quantization_config | {"dequantize": True}
    with redirect_stderr(StringIO()):  # progress is events; the library's bars would tear them
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch_dtype(dtype, device), local_files_only=True
        )
    return model.to(device.torch_name).eval()


@torch.no_grad()
def answer(
    model: PreTrainedModel, prompt: Sequence[int], ends: Sequence[int], length: int
) -> list[int]:
    """Ids of a greedy answer, at most `length` of them."""
    generate: Any = model.generate
    ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    from transformers import GenerationConfig  # noqa: PLC0415 - heavy

    config = GenerationConfig(
        max_new_tokens=length, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    out = generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def _log_probabilities(states: Tensor, head: Tensor) -> Tensor:
    """(n, V) float32."""
    return F.linear(states, head.to(states.dtype)).float().log_softmax(-1)


def _sums(before: Tensor, after: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(5,) weighted sums of both losses, agreement, divergence and one."""
    picked = [-logp.gather(1, targets[:, None])[:, 0] for logp in (before, after)]
    same = (before.argmax(-1) == after.argmax(-1)).float()
    kl = (before.exp() * (before - after)).sum(-1)
    columns = torch.stack([*picked, same, kl, torch.ones_like(kl)]).double().cpu()  # (5, n)
    return columns @ weights
