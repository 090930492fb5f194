"""What was written is refused where it is not whole or gives no numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.quantize.test_layers import row
from tests.quantize.test_run import job

from dialoop.core.device import find
from dialoop.core.errors import DialoopError
from dialoop.core.events import ignore
from dialoop.models.load import load_model
from dialoop.quantize import check
from dialoop.quantize.run import run
from dialoop.quantize.source import Source, passes

pytest.importorskip("compressed_tensors")
pytestmark = pytest.mark.filterwarnings("ignore")  # of compressed-tensors, on CPUs


def test_weights_that_transformers_misses_are_an_error(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(tiny, None, out, method={"kind": "int8_weight", "group_size": 32}), ignore)
    file = out / "model-layer-00001.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight_packed"
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    index = out / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    del told["weight_map"][name]
    index.write_text(json.dumps(told))
    with pytest.raises(DialoopError, match=r"finds no weights for `model\.layers\.1\.mlp\.up_proj"):
        check.reload(out, find("cpu"), "fp32")


def test_a_model_equals_itself_and_one_without_numbers_is_an_error(tiny: Path) -> None:
    source = Source(tiny, torch.float32, torch.device("cpu"))
    packed = row()
    parts = source.begin([packed])
    for number in range(len(source)):
        passes(source.layer(number), parts)
    reference = [source.finish(parts[0].states)]
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    same = check.compare(reference, source.head(), model, [packed], ignore)
    assert same.agreement == 1
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.perplexity == pytest.approx(same.source_perplexity, rel=1e-5)
    model.get_parameter("model.norm.weight").data[0] = float("nan")
    with pytest.raises(DialoopError, match="gives no finite numbers"):
        check.compare(reference, source.head(), model, [packed], ignore)
