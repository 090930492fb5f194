"""What every engine must do; run against each by a test file that gives the `engine` fixture.

Engines are compared with transformers' own greedy tokens in float32, on a tiny random model.
"""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.errors import UserError
from dialoop.core.events import Note
from dialoop.engines import Request, Sampling
from dialoop.engines.convert import ADAPTER_TIE_NATS, compare, greedy_transformers
from dialoop.engines.open import open_engine
from dialoop.engines.process import ProcessEngine
from dialoop.engines.spec import EngineSettings

PROMPTS = (tuple(range(20, 31)), (5, 9, 300, 7), tuple(range(100, 160)))
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "new": {"type": "boolean"},
            "kind": {"enum": ["order", "\u706f"]},
            "num": {"type": "integer", "minimum": 3, "maximum": 12},
        },
        "required": ["new", "kind", "num"],
        "additionalProperties": False,
    }
)
GREEDY = Sampling(max_tokens=16, temperature=0.0)


def expected(folder: Path, prompt: tuple[int, ...], num: int) -> list[int]:
    """The greedy continuation by transformers, in float32."""
    import torch

    from dialoop.core.device import find
    from dialoop.models.load import load_model

    model: Any = load_model(folder, device=find("cpu"), dtype="fp32")
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


def logprobs(folder: Path, prompt: tuple[int, ...], ids: list[int]) -> list[float]:
    """Log-probabilities of a continuation by transformers, in float32."""
    import torch

    from dialoop.core.device import find
    from dialoop.models.load import load_model

    model: Any = load_model(folder, device=find("cpu"), dtype="fp32")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


async def answer(engine: ProcessEngine, request: Request) -> list[int]:
    """All tokens of an answer."""
    return [token async for delta in engine.generate(request) for token in delta.ids]


def opened(checkpoint: Path, name: str, **settings: object) -> ProcessEngine:
    """An engine over the checkpoint in float32, not started."""
    wanted = {"engine": name, "dtype": "fp32", "device": "cpu", "threads": 1} | settings
    engine: Any = open_engine(checkpoint, EngineSettings.model_validate(wanted), lambda _: None)
    return engine


def make_adapter(folder: Path, base: Path, seed: int = 3) -> Path:
    """A random PEFT adapter on all linear layers, strong enough to change greedy answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from dialoop.core.device import find
    from dialoop.models.load import load_model

    model: Any = load_model(base, device=find("cpu"), dtype="fp32")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned = get_peft_model(model, config)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


class EngineContract:
    """Inherit and set `name`; conftest starts the engine, once for a class."""

    name: str
    settings: ClassVar[dict[str, object]] = {}
    """What the engine needs besides."""

    @classmethod
    def opened(cls, checkpoint: Path, **settings: object) -> Any:
        """The engine over a checkpoint in float32, not started."""
        return opened(checkpoint, cls.name, **(cls.settings | settings))

    def test_greedy_tokens_equal_transformers_alone_and_together(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        want = [expected(checkpoint, prompt, 16) for prompt in PROMPTS]

        async def work():
            requests = [Request(prompt, GREEDY) for prompt in PROMPTS]
            alone = [await answer(engine, request) for request in requests]
            together = await asyncio.gather(*[answer(engine, r) for r in requests])
            return alone, together

        alone, together = runner.run(work())
        assert alone == want
        assert together == want

    def test_a_request_that_joins_later_changes_nothing(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        want = [expected(checkpoint, prompt, 16) for prompt in PROMPTS]

        async def work():
            async with aclosing(engine.generate(Request(PROMPTS[0], GREEDY))) as first:
                tokens = list((await anext(first)).ids)
                other = asyncio.create_task(answer(engine, Request(PROMPTS[2], GREEDY)))
                tokens += [token async for delta in first for token in delta.ids]
            return tokens, await other

        assert runner.run(work()) == (want[0], want[2])

    def test_dialogues_that_fork_from_one_answer_stay_apart(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        """Caches of shared beginnings must not let one request read another's tokens."""

        async def work():
            beginning = (*PROMPTS[0], *await answer(engine, Request(PROMPTS[0], GREEDY)))
            forks = [(*beginning, 40 + n, 60 + n, 80 + n) for n in range(3)]
            together = await asyncio.gather(*[answer(engine, Request(f, GREEDY)) for f in forks])
            return forks, together

        forks, together = runner.run(work())
        assert together == [expected(checkpoint, fork, 16) for fork in forks]

    def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        want = expected(checkpoint, PROMPTS[0], 16)
        stop = want[8]
        cut = want[: want.index(stop)]

        async def work():
            request = Request(PROMPTS[0], GREEDY, stop_ids=(stop,))
            deltas = [delta async for delta in engine.generate(request)]
            return [t for d in deltas for t in d.ids], [d.finish for d in deltas]

        tokens, reasons = runner.run(work())
        assert tokens == cut
        assert reasons[-1] == "stop"
        assert set(reasons[:-1]) <= {None}

    def test_length_ends_the_answer(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        async def work():
            short = Request(PROMPTS[0], replace(GREEDY, max_tokens=1))
            return [delta async for delta in engine.generate(short)]

        deltas = runner.run(work())
        assert [token for d in deltas for token in d.ids] == expected(checkpoint, PROMPTS[0], 1)
        assert deltas[-1].finish == "length"

    def test_a_seed_repeats_an_answer_whatever_runs_beside_it(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        chance = Sampling(max_tokens=24, temperature=1.0, top_p=0.95, seed=7)

        async def work():
            request = Request(PROMPTS[0], chance)
            other = Request(PROMPTS[1], replace(chance, seed=8))
            alone = await answer(engine, request)
            beside = await asyncio.gather(*[answer(engine, r) for r in (other, request, other)])
            another = await answer(engine, Request(PROMPTS[0], replace(chance, seed=9)))
            return alone, beside[1], another

        alone, beside, another = runner.run(work())
        assert alone == beside
        assert alone != another

    def test_top_p_that_keeps_one_token_is_greedy(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        want = expected(checkpoint, PROMPTS[1], 16)

        async def work():
            narrow = Sampling(max_tokens=16, temperature=0.7, top_p=1e-6, seed=1)
            return await answer(engine, Request(PROMPTS[1], narrow))

        assert runner.run(work()) == want

    def test_a_heavy_presence_penalty_repeats_no_token(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        async def work():
            plain = Sampling(max_tokens=40, temperature=0.0)
            fined = replace(plain, presence_penalty=2.0, frequency_penalty=2.0)
            return [await answer(engine, Request(PROMPTS[0], s)) for s in (plain, fined)]

        plain, fined = runner.run(work())
        assert plain != fined
        assert len(set(fined)) > len(set(plain))

    def test_closing_the_stream_aborts_the_work(
        self, runner: asyncio.Runner, narrow: ProcessEngine, checkpoint: Path
    ) -> None:
        async def work():
            for _ in range(20):
                long = Request(PROMPTS[0], Sampling(max_tokens=400, temperature=0.0))
                async with aclosing(narrow.generate(long)) as deltas:
                    await anext(deltas)
                assert narrow.num_open == 0
            return await answer(narrow, Request(PROMPTS[0], GREEDY))

        # One place: an abort that freed nothing would leave the last request in line for ever.
        assert runner.run(work()) == expected(checkpoint, PROMPTS[0], 16)

    def test_more_requests_than_places_wait_their_turn(
        self, runner: asyncio.Runner, narrow: ProcessEngine, checkpoint: Path
    ) -> None:
        want = expected(checkpoint, PROMPTS[0], 16)

        async def work():
            requests = [Request(PROMPTS[0], GREEDY)] * 7
            return await asyncio.gather(*[answer(narrow, r) for r in requests])

        assert runner.run(work()) == [want] * 7

    def test_a_prompt_without_room_is_refused(
        self, runner: asyncio.Runner, engine: ProcessEngine
    ) -> None:
        async def work():
            with pytest.raises(UserError, match="11 prompt tokens and 502 new ones pass the limit"):
                await answer(engine, Request(PROMPTS[0], replace(GREEDY, max_tokens=502)))
            with pytest.raises(UserError, match="a prompt and room for one token"):
                await answer(engine, Request((), GREEDY))

        runner.run(work())

    def test_the_choice_is_reported(self, checkpoint: Path) -> None:
        notes: list[object] = []
        wanted = {"engine": self.name, "device": "cpu"} | self.settings
        open_engine(checkpoint, EngineSettings.model_validate(wanted), notes.append)
        assert any(isinstance(n, Note) and n.text.startswith(f"engine: {self.name}") for n in notes)

    def test_logprobs_are_transformers_own(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        """Of the model alone: penalties and temperature choose, and change no value."""

        async def work():
            settings = {"temperature": 0.7, "presence_penalty": 1.0, "seed": 3, "logprobs": 0}
            asked = Request(PROMPTS[0], replace(GREEDY, **settings))
            return [delta async for delta in engine.generate(asked)]

        deltas = runner.run(work())
        ids = [token for delta in deltas for token in delta.ids]
        told = [one.logprob for delta in deltas for one in delta.logprobs]
        assert told == pytest.approx(logprobs(checkpoint, PROMPTS[0], ids), abs=1e-4)  # float32

    def test_an_answer_keeps_its_schema(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path
    ) -> None:
        pytest.importorskip("xgrammar")
        tokenizer = load_tokenizer(checkpoint)

        async def work():
            asked = Request(PROMPTS[0], replace(GREEDY, max_tokens=100), (2,), SCHEMA)
            chance = replace(asked.sampling, temperature=1.5, seed=5)
            together = [asked, Request(PROMPTS[1], GREEDY), replace(asked, sampling=chance)]
            deltas = [delta async for delta in engine.generate(asked)]
            return deltas, await asyncio.gather(*[answer(engine, one) for one in together])

        deltas, together = runner.run(work())
        assert deltas[-1].finish == "stop"
        for ids in (together[0], together[2]):
            value = json.loads(tokenizer.decode(ids))
            assert (type(value["new"]), value["kind"] in {"order", "\u706f"}) == (bool, True)
            assert 3 <= value["num"] <= 12
        assert together[1] == expected(checkpoint, PROMPTS[1], 16)

    @pytest.mark.parametrize(
        "schema",
        ['{"type": "wrong"}', '{"type": "string", "pattern": "([a"}', '{"$ref": "#/$defs/x"}'],
    )
    def test_what_is_no_schema_is_refused_and_harms_nobody(
        self, runner: asyncio.Runner, engine: ProcessEngine, checkpoint: Path, schema: str
    ) -> None:
        pytest.importorskip("xgrammar")

        async def work():
            with pytest.raises(UserError, match="the JSON Schema cannot be kept"):
                await answer(engine, Request(PROMPTS[0], GREEDY, (2,), schema))
            return await answer(engine, Request(PROMPTS[0], GREEDY))

        assert runner.run(work()) == expected(checkpoint, PROMPTS[0], 16)

    def test_adapters_come_and_go_and_the_base_stays_itself(
        self, runner: asyncio.Runner, checkpoint: Path, tmp_path: Path
    ) -> None:
        folders = [make_adapter(tmp_path / f"{n}", checkpoint, seed=n) for n in (3, 4)]
        base = [expected(checkpoint, prompt, 16) for prompt in PROMPTS]
        tuned = [greedy_transformers(folder, PROMPTS, 16) for folder in folders]

        async def work():
            # one is ready at once, so that the two take each other's place
            engine = opened(checkpoint, self.name, adapters={"a": str(folders[0])}, max_adapters=1)
            await engine.start()
            try:
                with pytest.raises(UserError, match=r"no adapter `b` is loaded \(known: a\)"):
                    await answer(engine, Request(PROMPTS[0], GREEDY, adapter="b"))
                await engine.load_adapter("b", folders[1])
                with pytest.raises(UserError, match="`b` is loaded already"):
                    await engine.load_adapter("b", folders[1])
                with pytest.raises(UserError, match="is no adapter"):
                    await engine.load_adapter("c", checkpoint)
                wanted = [
                    Request(prompt, GREEDY, adapter=name)
                    for name in (None, "a", "b", None)
                    for prompt in PROMPTS
                ]
                together = await asyncio.gather(*[answer(engine, r) for r in wanted])
                await engine.unload_adapter("a")
                with pytest.raises(UserError, match="no adapter `a` is loaded"):
                    await answer(engine, Request(PROMPTS[0], GREEDY, adapter="a"))
                left = [Request(PROMPTS[0], GREEDY, adapter=name) for name in (None, "b")]
                return together, [await answer(engine, r) for r in left]
            finally:
                await engine.stop()

        together, left = runner.run(work())
        assert together[:3] == together[9:] == base
        for want, found in zip(tuned, (together[3:6], together[6:9]), strict=True):
            check = compare([str(p) for p in PROMPTS], want, found, ADAPTER_TIE_NATS)
            assert check.agrees, check.difference
        assert tuned[0] != tuned[1]
        assert left == [together[0], together[6]]

    def test_an_adapter_is_applied_to_its_base(
        self, runner: asyncio.Runner, checkpoint: Path, tmp_path: Path
    ) -> None:
        adapter = make_adapter(tmp_path / "adapter", checkpoint)
        want = greedy_transformers(adapter, PROMPTS, 16)

        async def work():
            engine = self.opened(adapter)
            await engine.start()
            try:
                requests = [Request(prompt, GREEDY) for prompt in PROMPTS]
                return await asyncio.gather(*[answer(engine, r) for r in requests])
            finally:
                await engine.stop()

        names = [str(prompt) for prompt in PROMPTS]
        check = compare(names, want, runner.run(work()), ADAPTER_TIE_NATS)
        assert check.agrees, check.difference
        assert want != [expected(checkpoint, prompt, 16) for prompt in PROMPTS]
