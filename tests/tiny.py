"""Tiny random checkpoints with a real tokenizer and a ChatML template, made in under a second."""

import json
from pathlib import Path
from typing import Any, Literal

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LINES = (
    "Where is my order? It left our warehouse this morning and arrives tomorrow.",
    "How do I return a lamp? Send it back within thirty days with the receipt.",
    "我的订单在哪里？您的订单今天早上已经发货，明天送达。",  # noqa: RUF001
    "def add(a, b):\n    return a + b  # 12 34 567",
)


def make_tiny_checkpoint(
    folder: Path,
    family: Literal["llama", "internlm3"] = "llama",
    *,
    hidden: int = 64,
    layers: int = 2,
    tied: bool = False,
    seed: int = 0,
) -> Path:
    """Write a whole checkpoint: weights, config, generation config, tokenizer, chat template.

    Returns:
        the folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    from dialoop.models.families import internlm3, register_all, write_remote_code

    register_all()
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tiny_tokenizer(folder)
    kind = LlamaConfig if family == "llama" else internlm3.config_class()
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = kind(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    write_remote_code(folder, family)
    return folder


def write_tiny_tokenizer(folder: Path) -> int:
    """Train a byte-level BPE tokenizer of 400 tokens on a few lines and write it.

    Returns:
        the size of the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHATML)
    return tokenizer.get_vocab_size()
