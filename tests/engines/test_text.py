"""Text of answers: decoding over token borders, stop strings over piece borders."""

import asyncio
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.fake import FakeEngine
from tests.tiny import write_tiny_tokenizer

from dialoop.chat.tokenizer import Tokenizer, load_tokenizer
from dialoop.engines import Request, Sampling
from dialoop.engines.text import StopFilter, complete, stream

ASK = Request((5, 6), Sampling(max_tokens=100, temperature=0.0))
TEXT = "Where is my order? 您的订单明天送达。 End."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    return load_tokenizer(folder)


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_pieces_join_to_the_text_before_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    at = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    borders = [0, *sorted(cuts), len(text)]
    filtered = StopFilter(stops)
    out = [filtered.push(text[a:b]) for a, b in pairwise(borders)]
    assert filtered.is_stopped == any(stop in text for stop in stops)
    whole = "".join(out) + filtered.finish()
    if filtered.is_stopped:
        # A stop that completes earlier wins over one that begins earlier but completes later.
        assert whole == text[: len(whole)]
        assert len(whole) >= at
        assert any(text[len(whole) :].startswith(stop) for stop in stops)
    else:
        assert whole == text


def test_text_that_cannot_be_a_stop_string_is_not_held_back() -> None:
    filtered = StopFilter(["STOP"])
    assert [filtered.push(piece) for piece in ("a", "S", "Tx", "ST", "OP", "b")] == [
        "a",
        "",
        "STx",
        "",
        "",
        "",
    ]


def test_an_answer_is_its_tokens_decoded(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    answer = asyncio.run(complete(FakeEngine(ids), tokenizer, ASK))
    assert (answer.text, answer.finish) == (TEXT, "stop")
    assert (answer.num_prompt_tokens, answer.num_tokens) == (2, len(ids))


@pytest.mark.parametrize("stop", ["明天", "order", "? 您", "。 E"])
def test_a_stop_string_over_token_borders_ends_the_answer_and_the_work(
    tokenizer: Tokenizer, stop: str
) -> None:
    engine = FakeEngine(tokenizer.encode(TEXT))
    answer = asyncio.run(complete(engine, tokenizer, ASK, [stop]))
    assert (answer.text, answer.finish) == (TEXT.partition(stop)[0], "stop")
    assert engine.num_aborted == 1


def test_no_piece_holds_half_a_character(tokenizer: Tokenizer) -> None:
    async def pieces() -> list[str]:
        async with aclosing(stream(FakeEngine(tokenizer.encode(TEXT)), tokenizer, ASK)) as found:
            return [piece.text async for piece in found]

    texts = asyncio.run(pieces())
    assert "".join(texts) == TEXT
    assert len(texts) > 5
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


def test_closing_early_aborts(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(tokenizer.encode(TEXT))

    async def first() -> None:
        async with aclosing(stream(engine, tokenizer, ASK)) as found:
            await anext(found)

    asyncio.run(first())
    assert engine.num_aborted == 1


def test_length_is_told_from_stop(tokenizer: Tokenizer, tmp_path: Path) -> None:
    short = Request((5, 6), Sampling(max_tokens=3, temperature=0.0))
    answer = asyncio.run(complete(FakeEngine(tokenizer.encode(TEXT)), tokenizer, short))
    assert (answer.finish, answer.num_tokens) == ("length", 3)


def test_an_answer_cut_at_the_limit_ends_with_a_whole_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("好\U0001f389")[:-1]
    assert tokenizer.decode(ids).endswith("\N{REPLACEMENT CHARACTER}")
    short = Request((5, 6), Sampling(max_tokens=len(ids), temperature=0.0))
    answer = asyncio.run(complete(FakeEngine(ids), tokenizer, short))
    assert (answer.text, answer.finish) == ("好", "length")
