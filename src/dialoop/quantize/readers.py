"""Readers: which engines read a quantized checkpoint, by its layout.

From the engines' sources and documentation: transformers 5.17, vLLM 0.32, SGLang 0.5.23, LMDeploy
0.16 (TurboMind); what was run here is told in docs/experiments.md.
"""

from __future__ import annotations

from pydantic import BaseModel


class Reader(BaseModel, frozen=True):
    """Whether an engine reads the result."""

    engine: str
    reads: bool
    note: str = ""


TRANSFORMERS = Reader(
    engine="transformers", reads=True, note="needs the package compressed-tensors"
)
OPENVINO = Reader(engine="openvino", reads=False, note="quantizes by itself from a whole model")
MARLIN = (32, 64, 128)
TURBOMIND = (32, 128)


def packed(bits: tuple[int, ...], group: int) -> tuple[Reader, ...]:
    """Readers of `pack-quantized`.

    Args:
        bits: that occur in the checkpoint.
        group: inputs that share a scale; 0 for all inputs of an output.
    """
    fits = group in (0, *MARLIN)
    is_plain = bits == (4,) and group in TURBOMIND
    return (
        TRANSFORMERS,
        Reader(engine="vllm", reads=fits, note="" if fits else f"not in groups of {group}"),
        Reader(engine="sglang", reads=fits, note="on NVIDIA GPUs"),
        Reader(
            engine="lmdeploy",
            reads=is_plain,
            note="TurboMind" if is_plain else "only 4 bits in groups of 32 or 128",
        ),
        OPENVINO,
    )


def int8() -> tuple[Reader, ...]:
    """Readers of `int-quantized` W8A8."""
    return (
        TRANSFORMERS,
        Reader(engine="vllm", reads=True),
        Reader(engine="sglang", reads=True, note="on NVIDIA GPUs"),
        Reader(engine="lmdeploy", reads=False, note="has a layout of its own for W8A8"),
        OPENVINO,
    )


def fp8() -> tuple[Reader, ...]:
    """Readers of `float-quantized` with scales of channels and tokens."""
    return (
        TRANSFORMERS,
        Reader(engine="vllm", reads=True, note="fast from compute capability 8.9; not on a CPU"),
        Reader(engine="sglang", reads=True, note="from compute capability 8.9"),
        Reader(engine="lmdeploy", reads=False, note="use --method fp8_block --method.format fp8"),
        OPENVINO,
    )


def fp8_block(*, is_hugging_face: bool) -> tuple[Reader, ...]:
    """Readers of FP8 in blocks, in either layout."""
    note = "needs the package accelerate; a CPU computes with the weights restored"
    return (
        Reader(engine="transformers", reads=True, note=note) if is_hugging_face else TRANSFORMERS,
        Reader(engine="vllm", reads=True),
        Reader(engine="sglang", reads=is_hugging_face),
        Reader(
            engine="lmdeploy",
            reads=is_hugging_face,
            note="" if is_hugging_face else "use --method.format fp8",
        ),
        OPENVINO,
    )


def nf4() -> tuple[Reader, ...]:
    """Readers of bitsandbytes' layout."""
    return (
        Reader(engine="transformers", reads=True, note="needs bitsandbytes and accelerate"),
        Reader(engine="vllm", reads=True, note="needs bitsandbytes; slower than gptq or awq"),
        Reader(engine="sglang", reads=False),
        Reader(engine="lmdeploy", reads=False),
        OPENVINO,
    )
