"""Peak memory of a LoRA step by what is kept of the activations, beside what the plan predicts.

    python benchmarks/activation_memory.py --out FILE [--tokens 2048 8192] [--layers 48]

One accelerator; the InternLM3-8B shape with random weights in bf16 unless other widths are given.
Each case is one packed row, forward and backward, after one that warms up.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dialoop.core import device as devices
from dialoop.data.units import Row, Unit
from dialoop.models import lora
from dialoop.models.spec import ModelFacts
from dialoop.train.activations import needed_bytes, recompute
from dialoop.train.batch import Step, collate
from dialoop.train.compiled import compile_layers
from dialoop.train.tiles import tile_mlps
from dialoop.train.view import View, use_packed_attention

GIB = 2**30
CASES: tuple[tuple[str, int, bool], ...] = (
    ("none", 0, False), ("none", 0, True), ("none", 2048, False),
    ("selective", 0, False), ("full", 0, False), ("full", 2048, False), ("full", 0, True),
    ("offload", 0, False), ("offload", 2048, False),
)  # fmt: skip
"""Mode, tokens of an MLP's tile, whether layers are compiled."""


def measure(arguments: argparse.Namespace, tokens: int, case: tuple[Any, int, bool]) -> dict:
    """Peak and predicted activations of a case in GiB, and the time of its step."""
    mode, tile, compiled = case
    config = LlamaConfig(
        vocab_size=128512, hidden_size=arguments.width, intermediate_size=arguments.mlp,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.width // 128,
        num_key_value_heads=2, head_dim=128, max_position_embeddings=1 << 20,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(requires_grad=False).train()
    use_packed_attention(model)
    lora.attach(model, lora.LoraConfig(rank=16), seed=0)
    if tile:
        tile_mlps(model, tile, compiled=compiled)
    recompute(model, mode, "cuda")
    if compiled:
        compile_layers(model)
    ids = np.random.default_rng(0).integers(5, 128000, tokens).astype(np.int32)
    labels = np.ones(tokens, np.float32)
    labels[: tokens - 1024] = 0  # few labels, so that the head's memory is not what is measured
    batch = collate([Unit((Row(ids, labels),))], torch.device("cuda"), Step(1024.0, 1))
    facts = ModelFacts(
        family="llama", num_layers=arguments.layers, hidden_size=arguments.width,
        num_heads=arguments.width // 128, num_kv_heads=2, head_dim=128,
        intermediate_size=arguments.mlp, vocab_size=128512, tied_embeddings=False,
        max_positions=1 << 20, num_parameters=0, weight_bytes=0,
    )  # fmt: skip
    row: dict[str, Any] = {"tokens": tokens, "mode": mode, "mlp_tile": tile, "compiled": compiled}
    row["predicted_gib"] = round(needed_bytes(mode, tokens, facts, 2, tile) / GIB, 2)
    before, start = 0, 0.0
    try:
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start = time.monotonic()
            batch.token_mean(View(model).token_nll(batch)).backward()
            devices.synchronize(torch.device("cuda"))
        row["measured_gib"] = round((torch.cuda.max_memory_allocated() - before) / GIB, 2)
        row["seconds"] = round(time.monotonic() - start, 3)
    except torch.OutOfMemoryError:
        row["measured_gib"] = None
    del model
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    return row


def main() -> None:
    """Run the cases and write one JSON document."""
    parser = argparse.ArgumentParser(description="Activation memory, measured and predicted.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 8192, 32768])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=10240)
    arguments = parser.parse_args()
    found = []
    for tokens in arguments.tokens:
        for case in CASES:
            found.append(measure(arguments, tokens, case))
            print(found[-1], flush=True)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
