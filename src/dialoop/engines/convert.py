"""A Hugging Face checkpoint of the Llama family to an OpenVINO model, checked against transformers.

Run as `python -m dialoop.engines.convert SRC DST`, a process of its own, because it needs torch and
OpenVINO together and twice the model's memory; the engine afterwards needs neither torch nor
transformers. Weights keep their type, exactly. Adapters find their layers by the module path, which
is why the traced module keeps the model under `model`.

The check runs both in float32 on fixed prompts and asks for the same greedy tokens.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.device import find
from dialoop.core.env import num_cpus
from dialoop.core.errors import DialoopError
from dialoop.core.files import new_folder, sha256, write_text
from dialoop.engines import Request, Sampling
from dialoop.engines.worker import WorkerJob
from dialoop.models import checkpoint
from dialoop.models.load import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from dialoop.models.spec import Dtype

FAMILIES = ("llama", "internlm3")
"""`model_type`s that were tried; others go to transformers."""
CHECK_TOKENS = 24
TIE_NATS = 1e-3
"""Two tokens closer than this in float32 may swap by rounding alone; the comparison ends there."""
ADAPTER_TIE_NATS = 2e-2
"""The same with an adapter, which OpenVINO fuses in bf16 where the CPU has it (0.008 was seen)."""
_TEXTS = (
    "What is the capital of France? Answer in one sentence.",
    "def is_prime(n: int) -> bool:\n    ",
    "1, 1, 2, 3, 5, 8, 13,",
)
_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Check:
    """How the OpenVINO model compares with transformers."""

    agrees: bool
    num_tokens: int
    """Tokens compared."""
    difference: str = ""
    """Where they part, in words."""


def convert(source: Path, target: Path) -> None:
    """Write the OpenVINO model of a checkpoint; `target` is whole or absent."""
    import openvino as ov
    import openvino_tokenizers
    from transformers import AutoTokenizer

    model = load_model(source, device=find("cpu"), dtype=_stored_dtype(source), attention="sdpa")
    converted = _stateful(model)
    plain = AutoTokenizer.from_pretrained(source)
    both: Any = openvino_tokenizers.convert_tokenizer(plain, with_detokenizer=True)
    tokenizer, detokenizer = both
    with new_folder(target) as folder:
        ov.save_model(converted, folder / "openvino_model.xml", compress_to_fp16=False)
        ov.save_model(tokenizer, folder / "openvino_tokenizer.xml")
        ov.save_model(detokenizer, folder / "openvino_detokenizer.xml")
        for name in _COPIED:
            if (source / name).exists():
                shutil.copy(source / name, folder / name)


def _stored_dtype(source: Path) -> Dtype:
    """The type of the weights on disk, which the conversion keeps."""
    config = checkpoint.read_json(source / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    names: dict[str | None, Dtype] = {"bfloat16": "bf16", "float16": "fp16"}
    return names.get(stored, "fp32")


def _stateful(model: PreTrainedModel) -> Any:
    """Trace one step over a batch and make its cache a state that openvino_genai can page."""
    import openvino as ov
    from openvino import opset13 as op
    from openvino._offline_transformations import apply_make_stateful_transformation

    config = model.config
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    width = config.head_dim or config.hidden_size // config.num_attention_heads
    traced = _traced(model, layers, heads, width)

    names = [f"{i}.{x}" for i in range(layers) for x in ("key", "value")]
    past = [f"past_key_values.{name}" for name in names]
    inputs = ["input_ids", "attention_mask", "position_ids", *past]
    for number, (port, name) in enumerate(zip(traced.inputs, inputs, strict=True)):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        shape = [-1, -1] if number < 3 else [-1, heads, -1, width]
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    present = [f"present.{name}" for name in names]
    for port, name in zip(traced.outputs, ["logits", *present], strict=True):
        port.get_tensor().set_names({name})
    traced.validate_nodes_and_infer_types()

    beam = op.parameter(ov.PartialShape([-1]), ov.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    traced.add_parameters([beam])
    for name in past:
        port = traced.input(name)
        users = list(port.get_target_inputs())
        gathered = op.gather(port.get_node().output(0), beam, op.constant(np.int64(0)))
        for user in users:
            user.replace_source_output(gathered.output(0))
    traced.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(traced, dict(zip(past, present, strict=True)))
    _start_empty(traced, heads, width)
    return traced


def _start_empty(traced: Any, heads: int, width: int) -> None:
    """Give every state its first value: no tokens, for as many rows as the batch has."""
    from openvino import opset13 as op

    shape = op.shape_of(traced.input("input_ids").get_node().output(0), output_type="i64")
    zero = op.constant(np.int64(0))
    batch = op.gather(shape, op.constant(np.array([0], np.int64)), zero)
    sizes = [op.constant(np.array([size], np.int64)) for size in (heads, 0, width)]
    empty = op.concat([batch, *sizes], 0)
    for node in traced.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([op.broadcast(op.constant(np.float32(0)), empty).output(0)])
    traced.validate_nodes_and_infer_types()


def _traced(model: PreTrainedModel, layers: int, heads: int, width: int) -> Any:
    import openvino as ov
    import torch
    from openvino.frontend.pytorch import patch_model

    step = _step_module(model, layers)
    if model.dtype != torch.float32:
        # The library's own way to keep 16-bit weights 16-bit; it has no public name yet.
        getattr(patch_model, "__make_16bit_traceable")(step)
    rows, past, new = 2, 3, 2
    example = (
        torch.ones(rows, new, dtype=torch.long),
        torch.ones(rows, past + new, dtype=torch.long),
        torch.arange(past, past + new).expand(rows, new).contiguous(),
        *[torch.randn(rows, heads, past, width) for _ in range(2 * layers)],
    )
    with torch.no_grad():
        return ov.convert_model(step, example_input=example)


def _step_module(model: PreTrainedModel, layers: int) -> Any:
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Step(torch.nn.Module):
        """(ids, mask over past and new, positions, past) -> (logits, present)."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            *past: torch.Tensor,
        ) -> tuple[torch.Tensor, ...]:
            cache = DynamicCache()
            for i in range(layers):  # by hand: update() on an empty layer traces a 0-d concat
                layer = DynamicLayer()
                layer.keys, layer.values = past[2 * i], past[2 * i + 1]
                layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
                layer.is_initialized = True
                cache.layers.append(layer)
            num_past, num_new = past[0].shape[2], input_ids.shape[1]
            row = torch.arange(num_new)[:, None] + num_past
            column = torch.arange(num_past + num_new)[None, :]
            allowed = (column <= row)[None, None] & (attention_mask[:, None, None, :] > 0)
            mask = torch.where(allowed, torch.tensor(0.0), torch.tensor(-65504.0))
            out = self.model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            both = [t for x in out.past_key_values.layers for t in (x.keys, x.values)]
            return (out.logits, *both)

    return Step()


def check(source: Path, model: Path, adapter: Path | None = None) -> Check:
    """Compare greedy answers of transformers and OpenVINO, both in float32.

    Args:
        source: the checkpoint; with an adapter, its base.
        model: the OpenVINO model made of it.
        adapter: a PEFT adapter folder to apply on both sides.
    """
    tokenizer = load_tokenizer(source)
    prompts = [tuple(tokenizer.encode(text)) for text in _TEXTS]
    expected = greedy_transformers(adapter or source, prompts)
    found = _greedy_openvino(model, adapter, prompts)
    return compare(_TEXTS, expected, found, ADAPTER_TIE_NATS if adapter else TIE_NATS)


def compare(
    texts: Sequence[str],
    expected: Sequence[tuple[Sequence[int], Sequence[float]]],
    found: Sequence[Sequence[int]],
    tie: float = TIE_NATS,
) -> Check:
    """Compare answers token by token, each up to its first tie.

    Args:
        texts: the prompts, for the report.
        expected: by prompt: tokens, and by how many nats each beat the next best.
        found: by prompt: tokens of the other side.
        tie: nats by which a token must beat the next best to be compared.
    """
    compared = 0
    for text, (ids, gaps), answer in zip(texts, expected, found, strict=True):
        for n, (want, gap, got) in enumerate(zip(ids, gaps, answer, strict=True)):
            compared += 1
            if want == got:
                continue
            if gap < tie:
                break
            where = f"token {n} after {text[:24]!r}: {got}, where transformers has {want}"
            return Check(agrees=False, num_tokens=compared, difference=where)
    return Check(agrees=True, num_tokens=compared)


def greedy_transformers(
    folder: Path, prompts: Sequence[tuple[int, ...]], num_tokens: int = CHECK_TOKENS
) -> list[tuple[list[int], list[float]]]:
    """Tokens, and by how many nats each beat the next best."""
    import torch

    model: Any = load_model(folder, device=find("cpu"), dtype="fp32")
    answers: list[tuple[list[int], list[float]]] = []
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                eos_token_id=None,
                pad_token_id=0,
            )
        ids = out.sequences[0, len(prompt) :].tolist()
        best = torch.stack([step[0].float().log_softmax(-1).topk(2).values for step in out.logits])
        answers.append((ids, (best[:, 0] - best[:, 1]).tolist()))
    return answers


def _greedy_openvino(
    model: Path, adapter: Path | None, prompts: list[tuple[int, ...]]
) -> list[list[int]]:
    job = WorkerJob(
        engine="openvino",
        folder=str(model),
        adapter=str(adapter) if adapter else None,
        max_length=2**20,
        dtype="fp32",
        device="cpu",
        threads=num_cpus(),
        max_concurrent=len(prompts),
        cache_gb=1,
    )
    backend = import_module("dialoop.engines.openvino").open_backend(job)
    answers: list[list[int]] = [[] for _ in prompts]
    for key, prompt in enumerate(prompts):
        backend.add(key, Request(prompt, Sampling(CHECK_TOKENS, temperature=0.0)))
    while backend.has_work():
        for key, item in backend.step():
            if isinstance(item, DialoopError):
                raise item
            answers[key] += item.ids
    return answers


def main(source: str, target: str, adapter: str | None = None) -> None:
    """Convert where that has not been done, check, and leave the result beside the model."""
    folder = Path(target)
    if not (folder / "openvino_model.xml").exists():
        convert(Path(source), folder)
    result = check(Path(source), folder, Path(adapter) if adapter else None)
    write_text(check_file(folder, Path(adapter) if adapter else None), json.dumps(asdict(result)))


def check_file(model: Path, adapter: Path | None) -> Path:
    """Where the result of a check is kept."""
    if adapter is None:
        return model / "check.json"
    return model / f"check-{sha256(adapter / 'adapter_model.safetensors')[:16]}.json"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except DialoopError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
