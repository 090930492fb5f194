"""What every engine must do; run against each by a test file that gives the `engine` fixture.

Engines are compared with transformers' own greedy tokens in float32, on a tiny random model.
"""

import asyncio
import os
import signal
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dialoop.core.errors import UpstreamError, UserError
from dialoop.core.events import Note
from dialoop.engines import Request, Sampling
from dialoop.engines.choose import prepare
from dialoop.engines.process import ProcessEngine
from dialoop.engines.spec import EngineSettings

PROMPTS = (tuple(range(20, 31)), (5, 9, 300, 7), tuple(range(100, 160)))
GREEDY = Sampling(max_tokens=16, temperature=0.0)


def expected(folder: Path, prompt: tuple[int, ...], num: int) -> list[int]:
    """The greedy continuation by transformers, in float32."""
    import torch

    from dialoop.core.device import find
    from dialoop.models.load import load_model

    model = load_model(folder, device=find("cpu"), dtype="fp32")
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=num,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


async def answer(engine: ProcessEngine, request: Request) -> list[int]:
    """All tokens of an answer."""
    return [token async for delta in engine.generate(request) for token in delta.ids]


class EngineContract:
    """Inherit, set `name`, and give the fixture `checkpoint`."""

    name: str

    @asynccontextmanager
    async def started(self, checkpoint: Path, **settings: object):
        """An engine over the checkpoint, stopped at the end."""
        wanted = {"engine": self.name, "dtype": "fp32", "device": "cpu", "threads": 2} | settings
        notes: list[object] = []
        engine = prepare(checkpoint, EngineSettings.model_validate(wanted), notes.append)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()

    def run(self, checkpoint: Path, work, **settings: object):
        """Run `work(engine)` in a loop of its own."""

        async def whole():
            async with self.started(checkpoint, **settings) as engine:
                return await asyncio.wait_for(work(engine), 60)

        return asyncio.run(whole())

    def test_greedy_tokens_equal_transformers_alone_and_together(self, checkpoint: Path) -> None:
        want = [expected(checkpoint, prompt, 16) for prompt in PROMPTS]

        async def work(engine: ProcessEngine):
            requests = [Request(prompt, GREEDY) for prompt in PROMPTS]
            alone = [await answer(engine, request) for request in requests]
            together = await asyncio.gather(*[answer(engine, r) for r in requests])
            return alone, together

        alone, together = self.run(checkpoint, work)
        assert alone == want
        assert together == want

    def test_a_request_that_joins_later_changes_nothing(self, checkpoint: Path) -> None:
        want = [expected(checkpoint, prompt, 16) for prompt in PROMPTS]

        async def work(engine: ProcessEngine):
            async with aclosing(engine.generate(Request(PROMPTS[0], GREEDY))) as first:
                tokens = list((await anext(first)).ids)
                other = asyncio.create_task(answer(engine, Request(PROMPTS[2], GREEDY)))
                tokens += [token async for delta in first for token in delta.ids]
            return tokens, await other

        assert self.run(checkpoint, work) == (want[0], want[2])

    def test_dialogues_that_fork_from_one_answer_stay_apart(self, checkpoint: Path) -> None:
        """Caches of shared beginnings must not let one request read another's tokens."""

        async def work(engine: ProcessEngine):
            beginning = (*PROMPTS[0], *await answer(engine, Request(PROMPTS[0], GREEDY)))
            forks = [(*beginning, 40 + n, 60 + n, 80 + n) for n in range(3)]
            together = await asyncio.gather(*[answer(engine, Request(f, GREEDY)) for f in forks])
            return forks, together

        forks, together = self.run(checkpoint, work)
        assert together == [expected(checkpoint, fork, 16) for fork in forks]

    def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(self, checkpoint: Path) -> None:
        want = expected(checkpoint, PROMPTS[0], 16)
        stop = want[8]
        cut = want[: want.index(stop)]

        async def work(engine: ProcessEngine):
            request = Request(PROMPTS[0], GREEDY, stop_ids=(stop,))
            deltas = [delta async for delta in engine.generate(request)]
            return [t for d in deltas for t in d.ids], [d.finish for d in deltas]

        tokens, reasons = self.run(checkpoint, work)
        assert tokens == cut
        assert reasons[-1] == "stop"
        assert set(reasons[:-1]) <= {None}

    def test_length_ends_the_answer(self, checkpoint: Path) -> None:
        async def work(engine: ProcessEngine):
            short = Request(PROMPTS[0], replace(GREEDY, max_tokens=1))
            return [delta async for delta in engine.generate(short)]

        deltas = self.run(checkpoint, work)
        assert [token for d in deltas for token in d.ids] == expected(checkpoint, PROMPTS[0], 1)
        assert deltas[-1].finish == "length"

    def test_a_seed_repeats_an_answer_whatever_runs_beside_it(self, checkpoint: Path) -> None:
        chance = Sampling(max_tokens=24, temperature=1.0, top_p=0.95, seed=7)

        async def work(engine: ProcessEngine):
            request = Request(PROMPTS[0], chance)
            other = Request(PROMPTS[1], replace(chance, seed=8))
            alone = await answer(engine, request)
            beside = await asyncio.gather(*[answer(engine, r) for r in (other, request, other)])
            another = await answer(engine, Request(PROMPTS[0], replace(chance, seed=9)))
            return alone, beside[1], another

        alone, beside, another = self.run(checkpoint, work)
        assert alone == beside
        assert alone != another

    def test_top_p_that_keeps_one_token_is_greedy(self, checkpoint: Path) -> None:
        want = expected(checkpoint, PROMPTS[1], 16)

        async def work(engine: ProcessEngine):
            narrow = Sampling(max_tokens=16, temperature=0.7, top_p=1e-6, seed=1)
            return await answer(engine, Request(PROMPTS[1], narrow))

        assert self.run(checkpoint, work) == want

    def test_a_heavy_presence_penalty_repeats_no_token(self, checkpoint: Path) -> None:
        async def work(engine: ProcessEngine):
            plain = Sampling(max_tokens=40, temperature=0.0)
            fined = replace(plain, presence_penalty=2.0, frequency_penalty=2.0)
            return [await answer(engine, Request(PROMPTS[0], s)) for s in (plain, fined)]

        plain, fined = self.run(checkpoint, work)
        assert plain != fined
        assert len(set(fined)) > len(set(plain))

    def test_closing_the_stream_aborts_the_work(self, checkpoint: Path) -> None:
        async def work(engine: ProcessEngine):
            for _ in range(20):
                long = Request(PROMPTS[0], Sampling(max_tokens=400, temperature=0.0))
                async with aclosing(engine.generate(long)) as deltas:
                    await anext(deltas)
                assert engine.num_open == 0
            return await answer(engine, Request(PROMPTS[0], GREEDY))

        # One place: an abort that freed nothing would leave the last request in line for ever.
        assert self.run(checkpoint, work, max_concurrent=1) == expected(checkpoint, PROMPTS[0], 16)

    def test_more_requests_than_places_wait_their_turn(self, checkpoint: Path) -> None:
        want = expected(checkpoint, PROMPTS[0], 16)

        async def work(engine: ProcessEngine):
            requests = [Request(PROMPTS[0], GREEDY)] * 7
            return await asyncio.gather(*[answer(engine, r) for r in requests])

        assert self.run(checkpoint, work, max_concurrent=2) == [want] * 7

    def test_a_prompt_without_room_is_refused(self, checkpoint: Path) -> None:
        async def work(engine: ProcessEngine):
            with pytest.raises(UserError, match="11 prompt tokens and 16 new ones pass the limit"):
                await answer(engine, Request(PROMPTS[0], GREEDY))
            with pytest.raises(UserError, match="a prompt and room for one token"):
                await answer(engine, Request((), GREEDY))

        self.run(checkpoint, work, max_length=20)

    def test_death_of_the_worker_ends_every_request_with_an_error(self, checkpoint: Path) -> None:
        async def work(engine: ProcessEngine):
            long = Request(PROMPTS[0], Sampling(max_tokens=450, temperature=0.0))
            streams = [engine.generate(long) for _ in range(3)]
            for deltas in streams:
                await anext(deltas)
            os.kill(engine.pid, signal.SIGKILL)
            for deltas in streams:
                with pytest.raises(UpstreamError, match=r"has died \(signal 9\)"):
                    async for _ in deltas:
                        pass
            with pytest.raises(UpstreamError, match="has died"):
                await engine.health()

        self.run(checkpoint, work)

    def test_a_frozen_worker_is_told_from_a_busy_one(self, checkpoint: Path) -> None:
        async def work(engine: ProcessEngine):
            engine._stall_s = 1.5
            deltas = engine.generate(Request(PROMPTS[0], Sampling(max_tokens=450, temperature=0.0)))
            await anext(deltas)
            os.kill(engine.pid, signal.SIGSTOP)
            with pytest.raises(UpstreamError, match="has said nothing for"):
                async for _ in deltas:
                    pass

        self.run(checkpoint, work)

    def test_drain_lets_open_requests_end_and_refuses_new_ones(self, checkpoint: Path) -> None:
        want = expected(checkpoint, PROMPTS[0], 16)

        async def work(engine: ProcessEngine):
            first = engine.generate(Request(PROMPTS[0], GREEDY))
            tokens = list((await anext(first)).ids)
            drained = asyncio.create_task(engine.drain())
            await asyncio.sleep(0)
            with pytest.raises(UpstreamError, match="shutting down"):
                await answer(engine, Request(PROMPTS[1], GREEDY))
            assert not drained.done()
            tokens += [token async for delta in first for token in delta.ids]
            await drained
            return tokens

        assert self.run(checkpoint, work) == want

    def test_stop_ends_the_process_and_open_requests(self, checkpoint: Path) -> None:
        async def work(engine: ProcessEngine):
            deltas = engine.generate(Request(PROMPTS[0], Sampling(max_tokens=450, temperature=0.0)))
            await anext(deltas)
            await engine.stop()
            with pytest.raises(UpstreamError, match="was stopped"):
                async for _ in deltas:
                    pass
            with pytest.raises(ProcessLookupError):
                os.kill(engine.pid, 0)

        self.run(checkpoint, work)

    def test_the_choice_is_reported(self, checkpoint: Path) -> None:
        notes: list[object] = []
        prepare(checkpoint, EngineSettings(engine=self.name), notes.append)  # pyright: ignore[reportArgumentType]
        assert any(isinstance(n, Note) and n.text.startswith(f"engine: {self.name}") for n in notes)
