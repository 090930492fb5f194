"""lm-evaluation-harness against our own server, offline, where it is installed."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint

from dialoop.core import env
from dialoop.core.events import ignore
from dialoop.core.jobfile import parse
from dialoop.serve.run import running
from dialoop.serve.spec import ServeJob

TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@contextmanager
def server(job: ServeJob) -> Generator[str]:
    """The real server in a thread, for the length of the block."""
    found: list[str] = []
    is_up, is_over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running(job, ignore) as up:
            found.append(up.url)
            is_up.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert is_up.wait(120)
        yield found[0]
    finally:
        is_over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_lm_eval_asks_our_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    make_tiny_checkpoint(tmp_path / "tiny")
    rows = [{"question": f"What is {n}?", "answer": str(n)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "own.yaml").write_text(TASK.replace("DATA", str(tmp_path / "rows.jsonl")))
    settings = {"model": str(tmp_path / "tiny"), "port": 0, "engine": "transformers"}
    with server(parse(ServeJob, settings | {"device": "cpu", "dtype": "fp32"})) as url:
        arguments = f"model=tiny,base_url={url}/chat/completions,num_concurrent=2"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions"),
                *("--model_args", arguments, "--apply_chat_template", "--tasks", "own"),
                *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
                "--log_samples",
            ],
            env=env.variables(
                HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"), OPENAI_API_KEY="none"
            ),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert "exact_match,none" in json.loads(results.read_text())["results"]["own"]
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert len(answers) == 3
    assert all(isinstance(answer, str) for answer in answers)
