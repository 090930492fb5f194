"""One LoRA training step on a random model of a known shape: tokens a second and peak memory.

Ours is the general path: transformers' Llama decoder, our adapters, packed attention, the chunked
loss on the frozen head. The peer is transformers with PEFT and its own loss, on the same tokens.

    python benchmarks/lora_step.py --tokens 8192 --documents 16 --out result.json
"""

import argparse
import gc
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dialoop.data.units import Row, Unit
from dialoop.models import lora
from dialoop.train.batch import Step, collate
from dialoop.train.compiled import compile_layers
from dialoop.train.view import View, use_packed_attention

SHAPES = {
    "internlm3-8b": (4096, 10240, 48, 32, 2, 128512),
    "llama3.1-8b": (4096, 14336, 32, 32, 8, 128256),
}


def build(shape: str) -> LlamaForCausalLM:
    """A model of that shape with random bf16 weights on the GPU."""
    hidden, inner, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=128, max_position_embeddings=32768, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    was = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(was)
    return model


def documents(tokens: int, count: int, vocabulary: int) -> list[Row]:
    """Equally long documents of random tokens, all labelled."""
    random = np.random.default_rng(0)
    size = tokens // count
    return [
        Row(random.integers(0, vocabulary, size).astype(np.int32), np.ones(size, np.float32))
        for _ in range(count)
    ]


def measure(step: Any, tokens: int, repeats: int) -> dict[str, float]:
    """Median rate of some steps after two of warm-up, and peak memory."""
    torch.cuda.reset_peak_memory_stats()
    times, loss = [], torch.zeros(())
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {
        "loss": float(loss),
        "tokens_per_s": tokens / float(np.median(times[2:])),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def ours(
    shape: str, rows: list[Row], tokens: int, repeats: int, *, compiled: bool = False
) -> dict[str, float]:
    """Our general path."""
    model = build(shape)
    use_packed_attention(model)
    lora.attach(model, lora.LoraConfig(rank=16, alpha=32))
    if compiled:
        compile_layers(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    units = [Unit((row,)) for row in rows]
    batch = collate(units, torch.device("cuda"), Step(float(tokens - len(rows)), len(rows)))

    def step() -> torch.Tensor:
        loss = batch.token_mean(View(model).token_nll(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return measure(step, tokens, repeats)


def peer(shape: str, rows: list[Row], tokens: int, repeats: int) -> dict[str, float]:
    """Transformers and PEFT, a document a batch row."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(build(shape), config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.tensor(np.stack([row.ids for row in rows]).astype(np.int64), device="cuda")

    def step() -> torch.Tensor:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return measure(step, tokens, repeats)


def main() -> None:
    """Measure both and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="internlm3-8b", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = documents(args.tokens, args.documents, SHAPES[args.shape][-1])
    result: dict[str, Any] = {
        "shape": args.shape,
        "tokens": args.tokens,
        "torch": torch.__version__,
    }
    compiled = partial(ours, compiled=True)
    runs = {"dialoop": ours, "dialoop_compiled": compiled, "transformers_peft": peer}
    for name, run in runs.items():
        try:
            result[name] = run(args.shape, rows, args.tokens, args.repeats)
        except (ImportError, torch.cuda.OutOfMemoryError) as error:
            result[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        gc.collect()
        torch.cuda.empty_cache()
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
