"""What is written is what compressed-tensors and bitsandbytes read."""

from typing import Any

import pytest
import torch

from dialoop.quantize import storage
from dialoop.quantize.grid import Grid, nearest

ct: Any = pytest.importorskip("compressed_tensors.compressors.pack_quantized")
naive: Any = pytest.importorskip("compressed_tensors.compressors.naive_quantized.base")
quantization: Any = pytest.importorskip("compressed_tensors.quantization")

WEIGHT = torch.randn(24, 128, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 40, 3])
def test_packing_is_theirs(bits: int, columns: int) -> None:
    high = 1 << (bits - 1)
    codes = torch.randint(-high, high, (7, columns), dtype=torch.int8)
    words = storage.pack(codes, bits)
    assert torch.equal(words, ct.pack_to_int32(codes, bits))
    assert torch.equal(ct.unpack_from_int32(words, bits, codes.shape), codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_restored_as_we_compute_them(bits: int, *, symmetric: bool) -> None:
    grid = Grid(bits, symmetric, 32)
    stored = storage.packed(
        nearest(WEIGHT, torch.ones(128), grid, torch.bfloat16, search=True), bits
    )
    args = quantization.QuantizationArgs(num_bits=bits, symmetric=symmetric, group_size=32)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    theirs = ct.PackedQuantizationCompressor.decompress(stored.tensors, scheme)["weight"]
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs, stored.dense)


@pytest.mark.parametrize("kind", ["int8", "fp8", "block"])
def test_bytes_are_restored_as_we_compute_them(kind: str) -> None:
    weight = WEIGHT.repeat(16, 2)[:256]  # (256, 256)
    settings: dict[str, Any] = {"num_bits": 8, "strategy": "channel"}
    if kind == "int8":
        grid = Grid(8, symmetric=True, group=256)
        stored = storage.bytes_of(
            nearest(weight, torch.ones(256), grid, torch.bfloat16, search=False)
        )
    elif kind == "fp8":
        stored = storage.fp8_channels(weight, torch.bfloat16)
        settings |= {"type": "float"}
    else:
        stored = storage.fp8_blocks(weight, torch.bfloat16, 128, scale_name="weight_scale")
        settings |= {"type": "float", "strategy": "block", "block_structure": [128, 128]}
    args = quantization.QuantizationArgs(**settings)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    theirs = naive.NaiveQuantizationCompressor.decompress(stored.tensors, scheme)["weight"]
    torch.testing.assert_close(theirs.to(torch.bfloat16), stored.dense, rtol=2**-8, atol=0)
    torch.testing.assert_close(stored.dense.float(), weight, rtol=0.07, atol=0.02)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of kernels a CPU has not
def test_nf4_is_that_of_bitsandbytes() -> None:
    functional: Any = pytest.importorskip("bitsandbytes").functional
    stored = storage.nf4(WEIGHT, torch.bfloat16)
    packed, state = functional.quantize_4bit(
        WEIGHT.bfloat16(), quant_type="nf4", compress_statistics=True
    )
    assert torch.equal(stored.tensors["weight"], packed)
    assert torch.equal(stored.dense, functional.dequantize_4bit(packed, state))
    assert "weight.quant_state.bitsandbytes__nf4" in stored.tensors


def test_a_row_of_zeros_stays_one_in_half_precision() -> None:
    weight = torch.zeros(128, 128)
    for stored in (
        storage.fp8_channels(weight, torch.float16),
        storage.fp8_blocks(weight, torch.float16, 128, scale_name="weight_scale"),
    ):
        assert not stored.dense.any()
        assert torch.isfinite(stored.dense).all()
