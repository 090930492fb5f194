"""Loading agrees with transformers and PEFT, and refuses what is damaged or does not fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.conftest import peft_adapter
from tests.tiny import make_tiny_checkpoint

from dialoop.core import env
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.models import lineage
from dialoop.models.load import load_model

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])
CPU = find("cpu")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "copy")


@pytest.mark.parametrize("family", ["llama", "internlm3"])
def test_a_model_is_what_transformers_loads(family: str, request: pytest.FixtureRequest) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder: Path = request.getfixturevalue(family)
    ours = load_model(folder, device=CPU, dtype="fp32")
    assert ours.config.model_type == family
    assert not ours.training
    config = json.loads((folder / "config.json").read_text())
    plain = LlamaForCausalLM(LlamaConfig(**_llama(config)))
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(logits(ours), logits(plain.eval()), atol=0, rtol=0)


def _llama(config: dict[str, Any]) -> dict[str, Any]:
    skipped = {"model_type", "auto_map", "architectures", "bias", "qkv_bias", "dtype"}
    return {k: v for k, v in config.items() if k not in skipped}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)],
)
def test_the_dtype_is_obeyed(llama: Path, dtype: str, expected: torch.dtype) -> None:
    assert load_model(llama, device=CPU, dtype=dtype).dtype == expected  # pyright: ignore[reportArgumentType]


def test_an_adapter_folder_loads_its_base_as_peft_does(internlm3: Path, adapter: Path) -> None:
    from peft import PeftModel

    ours = load_model(adapter, device=CPU, dtype="fp32")
    theirs = PeftModel.from_pretrained(load_model(internlm3, device=CPU, dtype="fp32"), adapter)
    torch.testing.assert_close(logits(ours), logits(theirs.eval()), atol=1e-4, rtol=1e-4)
    base = load_model(internlm3, device=CPU, dtype="fp32")
    assert (logits(ours) - logits(base)).abs().max() > 0.1


def test_four_bits_stay_near_the_full_weights(llama: Path) -> None:
    full = load_model(llama, device=CPU, dtype="fp32")
    small = load_model(llama, device=CPU, dtype="fp32", quantization="nf4")
    assert small.get_submodule("model.layers.0.mlp.up_proj").weight.dtype == torch.uint8
    cosine = torch.cosine_similarity(logits(full).flatten(), logits(small).flatten(), dim=0)
    assert 0.8 < cosine < 0.999  # random weights suffer more than trained ones


def test_plain_transformers_loads_our_internlm3_through_its_code_files(internlm3: Path) -> None:
    code = (
        "import sys; from transformers import AutoModelForCausalLM\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'dialoop' not in sys.modules; print(m.config.model_type, type(m).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(internlm3)],
        capture_output=True,
        text=True,
        check=True,
        env=env.variables(HF_HOME=str(internlm3.parent / "hf"), HF_HUB_OFFLINE="1"),
    )
    assert done.stdout.split() == ["internlm3", "InternLM3ForCausalLM"]


def test_a_cut_weight_file_is_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"damaged checkpoint: `.*model.safetensors` has \d+ bytes"):
        load_model(copy, device=CPU)


def test_a_cut_header_is_named(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(UserError, match=r"model.safetensors` is cut short \(2 bytes\)"):
        load_model(copy, device=CPU)


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors` is missing"):
        load_model(copy, device=CPU)


def test_a_config_that_is_no_json_is_named(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json` is not JSON"):
        load_model(copy, device=CPU)


def test_missing_weights_are_not_drawn_at_random(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for `model.norm.weight`"):
        load_model(copy, device=CPU)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(UserError, match=r"has shape \(\d+, \d+\) and its config says"):
        load_model(copy, device=CPU)


def test_an_unknown_family_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "martian"}))
    with pytest.raises(UserError, match=r"cannot load a `martian` as a language model"):
        load_model(copy, device=CPU)


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no safetensors weights"):
        load_model(copy, device=CPU)


def test_no_folder_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no folder\nhint: give a checkpoint folder"):
        load_model(tmp_path / "nothing", device=CPU)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path, adapter: Path) -> None:
    other = make_tiny_checkpoint(tmp_path / "wide", "internlm3", hidden=96)
    moved = _rebased(adapter, tmp_path / "adapter", other)
    with pytest.raises(UserError, match="is for another base"):
        load_model(moved, device=CPU)


def test_an_adapter_that_recorded_other_weights_is_refused(tmp_path: Path, internlm3: Path) -> None:
    adapter = peft_adapter(internlm3, tmp_path / "adapter")
    lineage.record(adapter, base=internlm3)
    load_model(adapter, device=CPU)
    other = make_tiny_checkpoint(tmp_path / "other", "internlm3", seed=7)
    moved = _rebased(adapter, tmp_path / "moved", other)
    with pytest.raises(UserError, match="is for another base: the weights of"):
        load_model(moved, device=CPU)


def test_an_adapter_without_its_base_says_so(tmp_path: Path, adapter: Path) -> None:
    moved = _rebased(adapter, tmp_path / "adapter", Path("acme/never-pulled"))
    with pytest.raises(UserError, match=r"`acme/never-pulled` of the adapter .* is not on this"):
        load_model(moved, device=CPU)


def _rebased(adapter: Path, folder: Path, base: Path) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
