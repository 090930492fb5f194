"""The transformers engine keeps the contract; what is particular to it."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engines.contract import (
    GREEDY,
    PROMPTS,
    EngineContract,
    answer,
    expected,
    logprobs,
    make_adapter,
    opened,
)

from dialoop.core.errors import UserError
from dialoop.engines import Request, Sampling
from dialoop.engines.choose import prepare
from dialoop.engines.prefixes import Prefixes
from dialoop.engines.process import ProcessEngine
from dialoop.engines.spec import EngineSettings
from dialoop.engines.transformers import open_backend
from dialoop.engines.worker import WorkerJob


class TestTransformers(EngineContract):
    name = "transformers"

    def test_bias_forbids_and_forces_tokens(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        first = expected(checkpoint, PROMPTS[0], 1)[0]

        async def work():
            biases = ((first, -100.0), (7, 100.0))
            settings = [replace(GREEDY, logit_bias=(bias,)) for bias in biases]
            return [await answer(engine, Request(PROMPTS[0], one)) for one in settings]

        without, forced = runner.run(work())
        assert first not in without
        assert forced == [7] * 16

    def test_the_likeliest_tokens_are_told(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        async def work():
            asked = Request(PROMPTS[0], replace(GREEDY, max_tokens=4, logprobs=3))
            return [delta async for delta in engine.generate(asked)]

        told = [one for delta in runner.run(work()) for one in delta.logprobs]
        assert [one.top[0][1] for one in told] == [one.logprob for one in told]
        assert [one.top[0][0] for one in told] == expected(checkpoint, PROMPTS[0], 4)
        assert told[0].top[0][1] >= told[0].top[1][1] >= told[0].top[2][1]
        other, value = told[3].top[1]
        ids = expected(checkpoint, PROMPTS[0], 3)
        assert value == pytest.approx(logprobs(checkpoint, PROMPTS[0], [*ids, other])[-1], abs=1e-4)


def test_what_was_read_is_not_read_again_and_changes_nothing(checkpoint: Path) -> None:
    job = WorkerJob("transformers", str(checkpoint), 512, "fp32", "cpu", 1, 4, 0, prefix_tokens=400)
    backend = open_backend(job)
    beginning = tuple(range(100, 150))
    prompts = [(*beginning, *more) for more in ((20, 21), (30,), (20, 21, 22, 23))]
    for prompt in prompts:
        found: list[int] = []
        backend.add(1, Request(prompt, Sampling(16, temperature=0.0)))
        while backend.has_work():
            for _, delta in backend.step():
                found += delta.ids  # pyright: ignore[reportAttributeAccessIssue]
        assert found == expected(checkpoint, prompt, 16)
    known = backend._groups[None]._prefixes  # pyright: ignore[reportAttributeAccessIssue]
    assert known.find((*beginning, 99, 98))[0] == len(beginning)


def test_the_store_drops_what_was_used_longest_ago() -> None:
    import torch

    def layers(num: int):
        return [(torch.zeros(1, 2, num, 4), torch.zeros(1, 2, num, 4))]

    store = Prefixes(50)
    one, two, three = (tuple(range(n, n + 20)) for n in (0, 100, 200))
    store.put(one, layers(20))
    store.put(two, layers(20))
    assert store.find((*one, 5))[0] == 20
    store.put(three, layers(20))
    assert store.find((*two, 5)) == (0, [])
    assert store.find((*one, 5))[0] == 20
    store.put((*one, 5), layers(21))
    assert store.find((*three, 5))[0] == 20
    assert store.find(one)[0] == 19  # the last token is read in any case
    store.put(tuple(range(300, 351)), layers(51))
    assert store.find((*one, 5, 6))[0] == 21
    assert Prefixes(0).find(one) == (0, [])


def test_adapters_beside_an_adapter_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", checkpoint)
    settings = EngineSettings(engine="transformers", device="cpu", adapters={"a": str(adapter)})
    with pytest.raises(UserError, match="is an adapter itself"):
        prepare(adapter, settings, lambda _: None)
    with pytest.raises(UserError, match="is no adapter"):
        opened(checkpoint, "transformers", adapters={"a": str(tmp_path)})
