"""A merged checkpoint stands alone, says what base plus adapter said, or does not exist."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core.device import find
from dialoop.core.errors import DialoopError, UserError
from dialoop.core.events import ignore
from dialoop.models import merge as merging
from dialoop.models.load import load_model
from dialoop.models.merge import run as merge
from dialoop.models.spec import MergeJob

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, device=find("cpu"), dtype="fp32")(IDS).logits


def test_merged_equals_unmerged(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    result = merge(MergeJob(model=str(adapter), output=out), ignore)
    torch.testing.assert_close(logits(out), logits(adapter), atol=1e-3, rtol=1e-4)
    assert result.num_layers == 6
    assert result.greedy_agreement == 1.0
    assert 0 < result.max_difference < result.tolerance
    assert "the same next token at 100.0% of positions" in result.text()


def test_a_merged_checkpoint_is_self_contained(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(MergeJob(model=str(adapter), output=out, max_shard_bytes=200_000), ignore)
    names = {path.name for path in out.iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert {"configuration_internlm3.py", "lineage.json"} <= names
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["InternLM3ForCausalLM"]
    lineage = json.loads((out / "lineage.json").read_text())
    assert len(lineage["base"]["fingerprint"]) == len(lineage["adapter"]["sha256"]) == 64


def test_bf16_is_kept_and_checked_with_its_tolerance(adapter: Path, tmp_path: Path) -> None:
    base = make_tiny_checkpoint(tmp_path / "base", "internlm3")
    load_model(base, device=find("cpu"), dtype="bf16").save_pretrained(base)
    out = tmp_path / "merged"
    merge(MergeJob(model=str(adapter), base=str(base), output=out), ignore)
    assert merging.checkpoint_dtype(out) == "bf16"


def test_a_wrong_merge_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    one, two = torch.randn(8, 20), torch.randn(8, 20)
    with pytest.raises(DialoopError, match="merged and unmerged logits differ by"):
        merging._compare([one], [two], "fp32", tmp_path, 1)
    with pytest.raises(DialoopError, match="nothing was written"):
        merging._compare([one], [one * float("nan")], "bf16", tmp_path, 1)


def test_weights_that_read_back_differently_are_an_error() -> None:
    logits = torch.randn(8, 20)
    merging._check_written([logits], [logits.clone()])
    with pytest.raises(DialoopError, match="reads back with other logits"):
        merging._check_written([logits], [logits + 1e-6])


def test_a_failing_merge_leaves_no_folder(adapter: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(adapter, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot read the adapter"):
        merge(MergeJob(model=str(broken), output=tmp_path / "out"), ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_a_full_model_has_nothing_to_merge(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter, so there is nothing to merge"):
        merge(MergeJob(model=str(llama), output=tmp_path / "out"), ignore)


def test_an_output_in_use_is_refused(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        merge(MergeJob(model=str(adapter), output=tmp_path), ignore)
    assert (tmp_path / "kept.txt").read_text() == "mine"


@pytest.mark.filterwarnings("ignore")  # bitsandbytes and compressed-tensors warn on CPUs
@pytest.mark.parametrize("kind", ["gptq", "fp8", "nf4"])
def test_an_adapter_of_a_quantized_base_is_merged_into_whole_weights(
    kind: str, internlm3: Path, adapter: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from dialoop.models import lineage
    from dialoop.quantize.run import run as quantize
    from dialoop.quantize.spec import QuantizeJob

    data = tmp_path / "data.jsonl"
    line = {"messages": [{"role": r, "content": r} for r in ("user", "assistant")]}
    data.write_text(json.dumps(line) + "\n")
    method = {"kind": kind, **({"group_size": 32} if kind == "gptq" else {})}
    given = {
        "model": str(internlm3), "method": method, "dataset": [str(data)], "validation": 0,
        "output": tmp_path / "base", "dtype": "fp32", "device": "cpu",
    }  # fmt: skip
    quantize(QuantizeJob.model_validate(given), ignore)
    beside = shutil.copytree(adapter, tmp_path / "adapter")
    lineage.record(beside, base=tmp_path / "base")
    config = json.loads((beside / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (beside / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / "merged"
    merge(MergeJob(model=str(beside), output=out), ignore)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    # FP8 rounds activations, too, which whole weights do not; NF4 computes in bfloat16.
    allowed = {"gptq": 1e-6, "nf4": 1e-3, "fp8": 0.02}[kind]
    difference = (logits(out) - logits(beside)).square().mean() / logits(beside).square().mean()
    assert difference < allowed
    assert not list(tmp_path.glob(".tmp*"))
