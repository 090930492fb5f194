"""Whole runs on tiny checkpoints: methods read back, runs go on, wrong requests are refused."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models.conftest import peft_adapter

from dialoop import ChatModel
from dialoop.core.device import Device, find
from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Artifact, Event, Note, Progress, ignore
from dialoop.core.jobfile import parse
from dialoop.models.adapted import dense_weight
from dialoop.models.lineage import base_fingerprint
from dialoop.models.load import base_of, load_model
from dialoop.quantize import files
from dialoop.quantize import run as running
from dialoop.quantize.run import run
from dialoop.quantize.spec import QuantizeJob, QuantizeResult

pytest.importorskip("compressed_tensors")
pytestmark = pytest.mark.filterwarnings("ignore")  # of bitsandbytes and compressed-tensors, on CPUs

METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "gptq": ({"group_size": 32}, 0.2),
    "awq": ({"group_size": 32}, 0.4),
    "fp8": ({}, 0.1),
    "int8": ({}, 0.02),
    "int8_weight": ({"group_size": 32}, 0.01),
    "nf4": ({}, 0.6),
}
"""Settings, and the divergence in nats that random weights of 64 channels showed, with room."""


def job(model: Path, dialogues: Path | None, output: Path, **fields: Any) -> QuantizeJob:
    given: dict[str, Any] = {
        "model": str(model),
        "method": {"kind": "gptq", "group_size": 32},
        "dataset": [str(dialogues)] if dialogues else [],
        "output": str(output),
        "device": "cpu",
        "dtype": "fp32",
    }
    return parse(QuantizeJob, given | fields)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([[1, 20, 30, 40, 50, 60]])
        return load_model(folder, device=find("cpu"), dtype="fp32")(ids).logits


@pytest.mark.parametrize("kind", METHODS)
def test_each_method_reads_back_near_the_model(
    kind: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    settings, divergence = METHODS[kind]
    out = tmp_path / "out"
    result = run(job(tiny, dialogues, out, method={"kind": kind, **settings}), ignore)
    assert result.verified
    assert 0 < result.kl < divergence
    assert result.num_layers == 14
    assert result.bytes < 0.62 * result.source_bytes
    assert result.perplexity is not None
    difference = (logits(out) - logits(tiny)).square().mean() / logits(tiny).square().mean()
    assert 0 < difference < 2 * divergence
    assert {r.engine for r in result.readers} == {
        "transformers", "vllm", "sglang", "lmdeploy", "openvino"
    }  # fmt: skip


def test_fp8_by_gptq_needs_dialogues_and_rounds_closer(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    method = {"kind": "fp8", "rounding": "gptq"}
    with pytest.raises(UserError, match="fp8 chooses its roundings on dialogues"):
        run(job(tiny, None, tmp_path / "none", method=method), ignore)
    near = run(job(tiny, dialogues, tmp_path / "near", method="fp8"), ignore)
    ours = run(job(tiny, dialogues, tmp_path / "ours", method=method), ignore)
    assert ours.kl < 0.9 * near.kl
    config = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "float-quantized"


@pytest.mark.parametrize("layout", ["compressed-tensors", "fp8"])
def test_fp8_in_blocks_reads_back_in_both_layouts(layout: str, wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    method = {"kind": "fp8_block", "format": layout}
    result = run(job(wide, None, out, method=method), ignore)
    assert result.perplexity is None
    assert 0 < result.kl < 0.2
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == layout
    assert {r.engine for r in result.readers if r.reads} >= {"vllm", "transformers"}
    assert ("lmdeploy" in {r.engine for r in result.readers if r.reads}) == (layout == "fp8")


def test_the_folder_stands_alone_and_says_where_it_is_from(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    out, events = tmp_path / "deep" / "out", []
    asked = job(tiny, dialogues, out)
    (tiny / "LICENSE").write_text("free")
    result = run(asked, events.append)
    names = {path.name for path in out.iterdir()}
    assert names >= {
        *("tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"),
        *("configuration_internlm3.py", "modeling_internlm3.py", "job.yaml", "lineage.json"),
        *("report.json", "report.md", "report.html", "model.safetensors.index.json"),
    }
    assert not list(out.parent.glob(".*")), "nothing is left beside"
    assert "auto_map" in json.loads((out / "config.json").read_text())
    assert len(base_fingerprint(out) or "") == 64
    assert QuantizeResult.model_validate_json((out / "report.json").read_text()) == result
    assert f"{result.perplexity:.4f}" in (out / "report.md").read_text()
    assert "Who reads it" in (out / "report.html").read_text()
    assert Artifact("model", str(out)) in events
    assert [e.done for e in events if isinstance(e, Progress) and e.task == "quantize"] == [0, 1, 2]
    assert "4.50 bits a weight" in result.text()


def test_a_quantized_folder_chats_and_serves(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    from dialoop.engines import Delta, Request, Sampling
    from dialoop.engines.transformers import open_backend
    from dialoop.engines.worker import WorkerJob

    out = tmp_path / "out"
    run(job(tiny, dialogues, out), ignore)
    model = ChatModel.from_pretrained(out, device="cpu", dtype="fp32")
    said = model.chat("Where is order 3?", max_new_tokens=6, temperature=0)
    from dialoop.chat.message import message

    with torch.set_grad_enabled(True):
        backend = open_backend(
            WorkerJob(
                engine="transformers", folder=str(out), adapter=None, max_length=64, dtype="fp32",
                device="cpu", threads=1, max_concurrent=1, cache_gb=0,
            )
        )  # fmt: skip
        ids = tuple(model.template.prompt_ids([message("user", "Where is order 3?")]))
        backend.add(1, Request(ids, Sampling(max_tokens=6, temperature=0)))
        got: list[int] = []
        while backend.has_work():
            for _, delta in backend.step():
                assert isinstance(delta, Delta)
                got += delta.ids
    stops = set(model.template.stop_ids)
    text = model.template.tokenizer.decode([i for i in got if i not in stops])
    assert text.strip() == said.strip()


def test_a_killed_run_goes_on_to_the_same_files(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(job(tiny, dialogues, whole), ignore)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dialoop.core import jobfile\n"
        "from dialoop.core.events import Progress\n"
        "from dialoop.quantize.run import run\n"
        "from dialoop.quantize.spec import QuantizeJob\n"
        "def emit(event):\n"
        "    if isinstance(event, Progress) and event.task == 'quantize' and event.done == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "run(jobfile.load(QuantizeJob, Path(sys.argv[1]), [], {}), emit)\n"
    )
    from dialoop.core import jobfile

    told = tmp_path / "job.yaml"
    told.write_text(jobfile.dump(job(tiny, dialogues, cut)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(told)], check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not cut.exists()
    with pytest.raises(UserError, match=r"holds a run for .* that was stopped"):
        run(job(tiny, dialogues, cut), ignore)
    with pytest.raises(UserError, match="was another job"):
        run(job(tiny, dialogues, cut, num_tokens=300, resume=True), ignore)
    events: list[Event] = []
    run(job(tiny, dialogues, cut, resume=True), events.append)
    assert Note("1 of 2 layers are there already") in events
    for file in whole.glob("*.safetensors*"):
        assert file.read_bytes() == (cut / file.name).read_bytes(), file.name


def test_a_kept_layer_is_as_it_was_and_others_have_more_bits(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = job(
        tiny,
        dialogues,
        out,
        keep=["lm_head", "model.layers.0.self_attn.*"],
        precisions={"*.down_proj": 8},
    )
    result = run(asked, ignore)
    assert (result.num_layers, result.num_kept) == (10, 4)
    assert 4.5 < result.bits_a_weight < 8.5
    model = load_model(out, device=find("cpu"), dtype="fp32")
    source = load_model(tiny, device=find("cpu"), dtype="fp32")
    kept = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.get_parameter(kept), source.get_parameter(kept))

    def error(name: str) -> float:
        found = dense_weight(model.get_submodule(name))
        return float((found - source.get_parameter(f"{name}.weight")).abs().mean())

    eight, four = (error(f"model.layers.1.mlp.{name}_proj") for name in ("down", "up"))
    assert 0 < 5 * eight < four


@pytest.mark.parametrize("mode", ["merge", "beside"])
def test_an_adapter_is_merged_or_put_beside(
    mode: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    adapter = peft_adapter(tiny, tmp_path / "adapter")
    out = tmp_path / "out"
    method = {"kind": "int8_weight", "group_size": 32}
    fields: dict[str, Any] = {"adapter": str(adapter), "adapter_mode": mode, "method": method}
    run(job(tiny, dialogues, out, **fields), ignore)
    subject = out if mode == "merge" else out / "adapter"
    wanted = logits(adapter)
    torch.testing.assert_close(logits(subject), wanted, atol=0.6, rtol=0.05)
    assert (logits(tiny) - wanted).abs().max() > 1, "the adapter changes something"
    if mode == "beside":
        assert base_of(subject) == out
    again = run(job(adapter, dialogues, tmp_path / "again", method=method), ignore)
    assert again.kl < 0.02, "an adapter's own folder is merged"


def test_a_budget_that_is_exceeded_is_an_error_and_marks_the_files(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = job(tiny, dialogues, out, max_ppl_increase="-60%")
    assert asked.max_ppl_increase == -0.6
    with pytest.raises(UserError, match=r"rose by .*, more than the -60\.0%.* not verified"):
        run(asked, ignore)
    report = json.loads((out / "report.json").read_text())
    assert report["verified"] is False
    assert "NO: the perplexity rose" in (out / "report.md").read_text()


def test_data_that_is_not_looked_at_only_measures(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    run(job(tiny, dialogues, tmp_path / "out", method={"kind": "fp8"}), events.append)
    assert Note("fp8 looks at no data: the dialogues only measure the result") in events


GROUPS = r"groups of 128 do not divide the 64 inputs of `model\.layers\.0"
NO_DATA = "no dialogues to measure"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": {"kind": "gptq"}}, GROUPS),
    ({"dataset": []}, "gptq chooses its roundings on dialogues"),
    (
        {"dataset": [], "method": {"kind": "fp8"}, "max_ppl_increase": 0.1},
        NO_DATA,
    ),
    ({"validation": 0, "max_ppl_increase": "1%"}, "nothing is held out"),
    ({"method": {"kind": "fp8_block"}}, "blocks of 128 do not divide the 64 outputs"),
    ({"keep": ["*.nose"]}, r"keep: no linear layer fits `\*\.nose`"),
    ({"keep": ["*"]}, "every layer is kept"),
    ({"precisions": {"*.q_proj": 8}}, "would be stored differently"),
    ({"precisions": {"*": 3}}, "gptq has no 3 bits"),
    ({"precisions": {"*": 4}, "method": {"kind": "fp8"}}, "fp8 has no 4 bits"),
    ({"max_ppl_increase": "much%"}, "max_ppl_increase"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_wrong_request_says_what_is_wrong(
    fields: dict[str, Any], message: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(job(tiny, dialogues, tmp_path / "out", **fields), ignore)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name], "nothing is left"


def test_a_model_that_cannot_be_read_back_is_told_beforehand() -> None:
    small = Device("cuda", 0, "a card", 10**9, supports_bf16=True)
    events: list[Event] = []
    assert running._reader(10**9, small, events.append).kind == "cpu"
    assert Note("the result will be checked on the CPU: a card cannot hold it") in events
    with pytest.raises(MachineError, match="neither the device nor this machine has"):
        running._reader(10**15, small, ignore)


def test_sizes_that_would_divide_are_named(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run(job(tiny, dialogues, tmp_path / "out", method={"kind": "awq"}), ignore)
    assert "--method.group_size 64 or 32 or 16, or leave the layer" in (error.value.hint or "")


def test_models_that_cannot_be_quantized_are_refused(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    run(job(tiny, dialogues, out), ignore)
    with pytest.raises(UserError, match="is quantized already, by `compressed-tensors`"):
        run(job(out, dialogues, tmp_path / "out"), ignore)
    other = shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"model_type": "gpt2"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="a `gpt2` cannot be quantized yet"):
        run(job(other, dialogues, tmp_path / "out"), ignore)
    adapter = peft_adapter(tiny, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"both .* are adapters"):
        run(job(adapter, dialogues, tmp_path / "out", adapter=str(adapter)), ignore)
    with pytest.raises(UserError, match="holds no adapter"):
        run(job(tiny, dialogues, tmp_path / "out", adapter=str(tiny)), ignore)


def test_an_output_in_use_is_kept(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        run(job(tiny, dialogues, tmp_path), ignore)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_a_disk_that_is_too_small_is_told_beforehand(
    tiny: Path, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(MachineError, match=r"needs about 0\.00 GiB"):
        run(job(tiny, dialogues, tmp_path / "out"), ignore)


def test_a_missing_package_is_told_beforehand(
    tiny: Path, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match="needs the package `compressed-tensors`"):
        run(job(tiny, dialogues, tmp_path / "out"), ignore)


def test_what_is_estimated_is_what_is_written(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    from dialoop.quantize.source import Source

    asked = job(tiny, dialogues, tmp_path / "out")
    result = run(asked, ignore)
    source = Source(tiny, torch.float32, torch.device("cpu"))
    each = asked.method.bits_a_weight(4)
    estimated = files.estimated_bytes(source, dict.fromkeys(source.linear_shapes, each))
    assert result.bytes == pytest.approx(estimated, rel=0.05)


def test_gguf_is_refused_with_the_way_to_it(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method: no GGUF is written; convert_hf_to_gguf\.py"):
        job(tiny, None, tmp_path / "out", method="gguf")
