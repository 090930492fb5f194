"""Checkpoints in each quantized format mean the weights that their layout says, and train."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import make_tiny_checkpoint
from tests.train.small import assert_it_learns, job, write_dialogues
from torch import Tensor

from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.models.adapted import dense_weight
from dialoop.models.load import load_model
from dialoop.models.quantized import formats
from dialoop.models.quantized_layer import QuantizedLinear

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Parts = dict[str, Tensor]
Stored = tuple[Parts, Tensor]
"""A layer's tensors, and the weight that they stand for."""


def rounded(weight: Tensor, bits: int, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (E, D) and scale and zero (E, groups) of round-to-nearest, asymmetric."""
    parts = weight.reshape(len(weight), -1, group)
    low, high = parts.amin(-1), parts.amax(-1)
    scale = ((high - low) / (2**bits - 1)).half().float()
    zero = (-low / scale).round().clamp(0, 2**bits - 1)
    codes = (parts / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    return codes.flatten(1).int(), scale, zero.int()


def packed(codes: Tensor, bits: int) -> Tensor:
    """Rows of numbers in int32, one by one, the first in the lowest bits."""
    each = 32 // bits
    out = torch.zeros(len(codes), -(-codes.shape[1] // each), dtype=torch.int64)
    for n in range(codes.shape[1]):
        out[:, n // each] |= codes[:, n].long() << (bits * (n % each))
    return torch.where(out >= 2**31, out - 2**32, out).int()


def gptq(bits: int, version: str, *, in_order: bool = True) -> Callable[[Tensor], Stored]:
    def make(weight: Tensor) -> Stored:
        width = weight.shape[1]
        order = torch.arange(width) if in_order else torch.randperm(width)
        codes, scale, zero = rounded(weight[:, order], bits)
        group = torch.empty(width, dtype=torch.int32)
        group[order] = torch.arange(width, dtype=torch.int32) // GROUP
        whole = torch.empty_like(codes)
        whole[:, order] = codes
        stored_zero = zero if version == "gptq_v2" else (zero - 1) & (2**bits - 1)
        parts = {
            "qweight": packed(whole, bits).T.contiguous(),
            "qzeros": packed(stored_zero.T.contiguous(), bits),
            "scales": scale.T.contiguous().half(), "g_idx": group,
        }  # fmt: skip
        dense = (whole - zero[:, group.long()]) * scale[:, group.long()]
        return parts, dense

    return make


def awq(weight: Tensor) -> Stored:
    codes, scale, zero = rounded(weight, 4)
    places = torch.arange(len(weight)).reshape(-1, 8)[:, list(AWQ_ORDER)].flatten()

    def columns(numbers: Tensor) -> Tensor:
        return packed(numbers.T[:, places].contiguous(), 4)

    parts = {"qweight": columns(codes), "qzeros": columns(zero), "scales": scale.T.half()}
    parts["scales"] = parts["scales"].contiguous()
    dense = (codes - zero.repeat_interleave(GROUP, 1)) * scale.repeat_interleave(GROUP, 1)
    return parts, dense


def whole_numbers(bits: int, *, symmetric: bool) -> Callable[[Tensor], Stored]:
    """pack-quantized: codes and zeros are signed, and stored with half the range added."""

    def make(weight: Tensor) -> Stored:
        codes, scale, zero = rounded(weight, bits)
        if symmetric:
            zero = torch.full_like(zero, 1 << (bits - 1))
        parts = {
            "weight_packed": packed(codes, bits), "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape),
        }  # fmt: skip
        if not symmetric:
            parts["weight_zero_point"] = packed(zero.T.contiguous(), bits).T.contiguous()
        dense = (codes - zero.repeat_interleave(GROUP, 1)) * scale.repeat_interleave(GROUP, 1)
        return parts, dense

    return make


def bytes_of(kind: torch.dtype, block: tuple[int, int] | None, name: str) -> Callable:
    """8-bit numbers with a scale a row, or a block."""
    largest = 127.0 if kind == torch.int8 else float(torch.finfo(kind).max)

    def make(weight: Tensor) -> Stored:
        height, width = block or (1, weight.shape[1])
        rows, columns = -(-weight.shape[0] // height), -(-weight.shape[1] // width)
        scale, dense = torch.ones(rows, columns), torch.empty_like(weight)
        codes = torch.empty(weight.shape, dtype=kind)
        for r in range(rows):
            for c in range(columns):
                part = slice(r * height, (r + 1) * height), slice(c * width, (c + 1) * width)
                scale[r, c] = weight[part].abs().max() / largest
                number = weight[part] / scale[r, c]
                codes[part] = (number.round() if kind == torch.int8 else number).to(kind)
                dense[part] = codes[part].float() * scale[r, c]
        return {"weight": codes, name: scale}, dense

    return make


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
    }


E4M3 = torch.float8_e4m3fn
BLOCK = (48, 48)
"""Does not divide the widths, 64 and 128."""
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Stored]]] = {
    **{
        f"gptq {bits} {version}": (
            {"quant_method": "gptq", "bits": bits, "group_size": GROUP} | extra, gptq(bits, version)
        )
        for bits in (2, 4, 8)
        for version, extra in (("gptq", {}), ("gptq_v2", {"checkpoint_format": "gptq_v2"}))
    },
    "gptq 4 by activation": (
        {"quant_method": "gptq", "bits": 4, "desc_act": True}, gptq(4, "gptq", in_order=False)
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    "fp8 in blocks": (
        {"quant_method": "fp8", "weight_block_size": list(BLOCK)},
        bytes_of(E4M3, BLOCK, "weight_scale_inv"),
    ),
    "fp8 in whole blocks": (
        {"quant_method": "fp8", "weight_block_size": [32, 32]},
        bytes_of(E4M3, (32, 32), "weight_scale_inv"),
    ),
    "int4 packed": (
        compressed("pack-quantized", num_bits=4, type="int", symmetric=True, strategy="group",
                   group_size=GROUP),
        whole_numbers(4, symmetric=True),
    ),
    "int4 packed with zeros": (
        compressed("pack-quantized", num_bits=4, type="int", symmetric=False, strategy="group",
                   group_size=GROUP),
        whole_numbers(4, symmetric=False),
    ),
    "int8 packed": (
        compressed("pack-quantized", num_bits=8, type="int", symmetric=True, strategy="group",
                   group_size=GROUP),
        whole_numbers(8, symmetric=True),
    ),
    "int8": (
        compressed("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel"),
        bytes_of(torch.int8, None, "weight_scale"),
    ),
    "float8": (
        compressed("float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel"),
        bytes_of(E4M3, None, "weight_scale"),
    ),
    "float8 in blocks": (
        compressed("float-quantized", num_bits=8, type="float", symmetric=True, strategy="block",
                   block_structure=list(BLOCK)),
        bytes_of(E4M3, BLOCK, "weight_scale"),
    ),
}  # fmt: skip


def quantized(folder: Path, plain: Path, name: str) -> dict[str, Tensor]:
    """Write a checkpoint in a format; what its layers mean, by name."""
    config, make = FORMATS[name]
    torch.manual_seed(0)
    shutil.copytree(plain, folder)
    tensors, dense = load_file(folder / "model.safetensors"), {}
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        layer = key.removesuffix(".weight")
        parts, dense[layer] = make(tensors.pop(key).float())
        tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return dense


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny")


def test_every_format_is_tried() -> None:
    assert {config["quant_method"] for config, _ in FORMATS.values()} == formats().keys()


@pytest.mark.parametrize("name", FORMATS)
def test_layers_compute_with_what_the_tensors_mean(name: str, tiny: Path, tmp_path: Path) -> None:
    """Weights, logits and the gradient below of a dense model with the same weights, to 1e-6."""
    dense = quantized(tmp_path / "small", tiny, name)
    small = load_model(tmp_path / "small", device=find("cpu"), dtype="fp32")
    plain = load_model(tiny, device=find("cpu"), dtype="fp32")
    assert len(dense) == 14
    for layer, weight in dense.items():
        ours = small.get_submodule(layer)
        assert isinstance(ours, QuantizedLinear)
        torch.testing.assert_close(dense_weight(ours), weight, rtol=1e-6, atol=1e-7)
        plain.get_submodule(layer).get_parameter("weight").data.copy_(weight)
    found = []
    for model in (small, plain):
        inputs = model.get_input_embeddings()(torch.arange(5, 40)[None]).detach().requires_grad_()
        out = model(inputs_embeds=inputs).logits
        out.square().mean().backward()
        found.append((out.detach(), inputs.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gptq 4 gptq", "awq", "fp8 in blocks", "int4 packed", "float8"])
@pytest.mark.parametrize("kind", ["qlora", "dora"])
def test_an_adapter_learns_on_it(kind: str, name: str, tiny: Path, tmp_path: Path) -> None:
    quantized(tmp_path / "small", tiny, name)
    data = write_dialogues(tmp_path / "data.jsonl")
    wanted = job(tmp_path / "small", data, tmp_path / "out", tuner={"kind": kind, "rank": 4})
    assert_it_learns(wanted)
    assert load_model(wanted.output, device=find("cpu"), dtype="fp32")


def test_fp8_is_what_transformers_reads(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    quantized(tmp_path / "small", tiny, "fp8 in whole blocks")  # it takes no others
    whole = FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "small", quantization_config=whole, dtype=torch.float32
    )
    ours = load_model(tmp_path / "small", device=find("cpu"), dtype="fp32")
    ids = torch.arange(5, 40)[None]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name][0].get("format")])
def test_compressed_tensors_reads_the_same(name: str, tiny: Path, tmp_path: Path) -> None:
    """The package's own decompression of a layer, to 1e-6."""
    package = pytest.importorskip("compressed_tensors")
    config, make = FORMATS[name]
    weight = torch.randn(96, 96)
    parts, expected = make(weight)
    arguments = package.quantization.QuantizationArgs(
        **config["config_groups"]["group_0"]["weights"]
    )
    scheme = package.quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = package.compressors.BaseCompressor.load_from_registry(config["format"])
    theirs = compressor.decompress(dict(parts), scheme)
    torch.testing.assert_close(theirs["weight"].float(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"quant_method": "odd"}, "by `odd`, which is not supported"),
        ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "the layout `gemv`"),
        ({"quant_method": "fp8"}, "fp8 with weight_block_size None"),
        (compressed("marlin-24", num_bits=4), "the layout `marlin-24` with 4 bits"),
    ],
)
def test_variants_that_are_not_read_are_told(
    config: dict[str, Any], complaint: str, tiny: Path
) -> None:
    path = tiny / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    with pytest.raises(UserError, match=complaint):
        load_model(tiny, device=find("cpu"), dtype="fp32")


def test_a_layer_that_lacks_a_tensor_is_told(tiny: Path, tmp_path: Path) -> None:
    quantized(tmp_path / "small", tiny, "awq")
    path = tmp_path / "small" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj` lacks scales"):
        load_model(tmp_path / "small", device=find("cpu"), dtype="fp32")
