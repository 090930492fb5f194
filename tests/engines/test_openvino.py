"""The OpenVINO engine keeps the contract; what is particular to it."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engines.contract import GREEDY, PROMPTS, EngineContract, answer, opened

from dialoop.core.errors import MachineError, UserError
from dialoop.engines import Request, Sampling
from dialoop.engines.choose import cache_gb
from dialoop.engines.openvino import OpenVinoBackend, adapter_scale
from dialoop.engines.process import ProcessEngine
from dialoop.engines.worker import WorkerJob

genai = pytest.importorskip("openvino_genai")


class TestOpenVino(EngineContract):
    name = "openvino"

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"logit_bias": ((5, 1.0),)}, "logit_bias: OpenVINO cannot change logits"),
            ({"logprobs": 2}, "top_logprobs: OpenVINO tells the log-probability of the chosen"),
        ],
    )
    def test_what_the_library_would_ignore_is_refused(
        self, runner: asyncio.Runner, engine: ProcessEngine, settings: Any, words: str
    ) -> None:
        async def work():
            await answer(engine, Request(PROMPTS[0], replace(GREEDY, **settings)))

        with pytest.raises(UserError, match=words):
            runner.run(work())


def test_the_conversion_reports_nothing_to_anybody(home: Path, checkpoint: Path) -> None:
    """The library keeps its client's id under `intel` in the home when it reports its use."""
    opened(checkpoint, "openvino")
    assert list((home / "openvino").glob("*/check.json"))
    assert not (home / "intel").exists()


def test_a_request_that_the_cache_cannot_hold_ends_with_an_error(checkpoint: Path) -> None:
    engine = opened(checkpoint, "openvino")
    folder = engine._job.folder
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 2
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {})
    job = WorkerJob("openvino", folder, 512, "fp32", "cpu", 1, 4, 1)
    backend = OpenVinoBackend(pipeline, job)
    backend.add(1, Request(tuple(range(10, 210)), Sampling(4, temperature=0.0)))
    ended = {}
    while backend.has_work():
        ended |= dict(backend.step())
    assert isinstance(ended[1], MachineError)
    assert "does not fit into the cache" in str(ended[1])


def test_a_cache_that_holds_no_whole_request_is_refused(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 48, "num_key_value_heads": 2, "head_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_attention_heads": 32}))
    assert cache_gb(tmp_path, 32768, "bf16", None) == 2
    assert cache_gb(tmp_path, 4096, "bf16", None) == 1
    with pytest.raises(UserError, match="cache_gb: 1 GB cannot hold one request of 32768 tokens"):
        cache_gb(tmp_path, 32768, "bf16", 1)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 8.0)])
def test_the_scale_of_an_adapter_is_pefts(tmp_path: Path, rslora: bool, scale: float) -> None:
    config = {"r": 16, "lora_alpha": 32, "use_rslora": rslora}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_scale(tmp_path) == scale


def test_an_adapter_that_openvino_would_apply_wrongly_is_refused(tmp_path: Path) -> None:
    config = {"r": 16, "lora_alpha": 32, "rank_pattern": {"q_proj": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot apply an adapter with rank_pattern"):
        adapter_scale(tmp_path)
