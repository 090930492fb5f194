"""Models known by a short name: hub ids, shape, licence; so that plans need no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from dialoop.models.spec import ModelFacts

APACHE = "Apache-2.0"
LLAMA31 = "Llama 3.1 Community License"


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the size of a Llama-like decoder."""

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    max_positions: int
    qkv_bias: bool = False
    bias: bool = False
    """Whether the output projection and the MLP have biases, too."""
    qk_norm: bool = False

    def num_parameters(self) -> int:
        """Weights of the decoder, tied ones once."""
        D, F = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = 2 * D * q + 2 * D * kv + 3 * D * F + 2 * D
        layer += (q + 2 * kv) * self.qkv_bias + (2 * D + 2 * F) * self.bias
        layer += 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab_size * D * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + embeddings + D

    def facts(self) -> ModelFacts:
        """The facts of a model of this shape, its weights in 16 bits."""
        count = self.num_parameters()
        return ModelFacts(
            family=self.family,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            tied_embeddings=self.tied_embeddings,
            max_positions=self.max_positions,
            num_parameters=count,
            weight_bytes=2 * count,
        )


@dataclass(frozen=True, slots=True)
class Known:
    """A model that has a short name."""

    name: str
    shape: Shape
    licence: str
    huggingface: str = ""
    """Its id on Hugging Face; empty for a model that only the registry has."""
    modelscope: str = ""
    registry: str = ""
    """Its address at the package registry, which is then preferred."""
    also: tuple[str, ...] = ()
    """Other names under which people know it."""


_SMOL_135M = (30, 576, 9, 3, 64, 1536, 49152, True, 8192)
_LLAMA31_8B = Shape("llama", 32, 4096, 32, 8, 128, 14336, 128256, False, 131072)
_QWEN25_7B = (28, 3584, 28, 4, 128, 18944, 152064, False)
_QWEN25_05B = Shape("qwen2", 24, 896, 14, 2, 64, 4864, 151936, True, 32768, qkv_bias=True)

MODELS = (
    Known("starter", Shape("internlm3", *_SMOL_135M), APACHE, registry="starter"),
    Known(
        "internlm3-8b-instruct",
        Shape("internlm3", 48, 4096, 32, 2, 128, 10240, 128512, False, 32768),
        APACHE,
        "internlm/internlm3-8b-instruct",
        "Shanghai_AI_Laboratory/internlm3-8b-instruct",
        also=("internlm3-8b",),
    ),
    Known(
        "llama3.1-8b",
        _LLAMA31_8B,
        LLAMA31,
        "meta-llama/Llama-3.1-8B",
        "LLM-Research/Meta-Llama-3.1-8B",
    ),
    Known(
        "llama3.1-8b-instruct",
        _LLAMA31_8B,
        LLAMA31,
        "meta-llama/Llama-3.1-8B-Instruct",
        "LLM-Research/Meta-Llama-3.1-8B-Instruct",
    ),
    Known(
        "qwen2.5-7b",
        Shape("qwen2", *_QWEN25_7B, 131072, qkv_bias=True),
        APACHE,
        "Qwen/Qwen2.5-7B",
        "Qwen/Qwen2.5-7B",
    ),
    Known(
        "qwen2.5-7b-instruct",
        Shape("qwen2", *_QWEN25_7B, 32768, qkv_bias=True),
        APACHE,
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct",
    ),
    Known("qwen2.5-0.5b", _QWEN25_05B, APACHE, "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
    Known(
        "qwen2.5-0.5b-instruct",
        _QWEN25_05B,
        APACHE,
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
    ),
    Known(
        "qwen3-8b",
        Shape("qwen3", 36, 4096, 32, 8, 128, 12288, 151936, False, 40960, qk_norm=True),
        APACHE,
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-8B",
    ),
    Known(
        "qwen3-0.6b",
        Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, True, 40960, qk_norm=True),
        APACHE,
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-0.6B",
    ),
    Known(
        "mistral-7b",
        Shape("mistral", 32, 4096, 32, 8, 128, 14336, 32768, False, 32768),
        APACHE,
        "mistralai/Mistral-7B-Instruct-v0.3",
        "LLM-Research/Mistral-7B-Instruct-v0.3",
        also=("mistral-7b-instruct",),
    ),
    Known(
        "smollm2-135m",
        Shape("llama", *_SMOL_135M),
        APACHE,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    Known(
        "smollm2-360m",
        Shape("llama", 32, 960, 15, 5, 64, 2560, 49152, True, 8192),
        APACHE,
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
    ),
    Known(
        "smollm2-1.7b",
        Shape("llama", 24, 2048, 32, 32, 64, 8192, 49152, True, 8192),
        APACHE,
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    ),
)


@cache
def _by_name() -> dict[str, Known]:
    return {name: item for item in MODELS for name in (item.name, *item.also)}


def names() -> list[str]:
    """Every short name."""
    return list(_by_name())


def find(name: str) -> Known | None:
    """The model of a short name or of a hub id, in any case; None when it is not known."""
    wanted = name.lower()
    if (known := _by_name().get(wanted)) is not None:
        return known
    ids = (item for item in MODELS if wanted and wanted == item.huggingface.lower())
    return next(ids, None)
