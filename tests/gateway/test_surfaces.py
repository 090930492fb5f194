"""Tokens, moderations, vectors and scores at the gateway."""

import base64
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from openai.types import ModerationCreateResponse
from tests.gateway.scripted import MODEL, Live, with_gateway
from tests.tiny import make_tiny_checkpoint, write_tiny_tokenizer

from dialoop.chat.message import from_openai
from dialoop.chat.template import Template
from dialoop.gateway.guard import Blocked

HELLO = {"role": "user", "content": "Where is my order?"}


class ToyGuard:
    """Blocks one word."""

    policy = "toy-1"

    def check(self, texts: Iterable[str]) -> None:
        """Raise where the word is."""
        for text in texts:
            if "lamp" in text:
                raise Blocked("lighting" if "red" not in text else "violence")


def make_guard() -> ToyGuard:
    return ToyGuard()


def test_tokens_are_the_model_s_own(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    template = Template.from_folder(tmp_path)
    encode = template.tokenizer.encode

    async def work(live: Live) -> None:
        async def post(path: str, status: int = 200, **body: Any) -> Any:
            answer = await live.http.post(path, json=body)
            assert answer.status_code == status, answer.text
            return answer.json()

        for path in ("/tokenize", "/v1/tokenize"):
            found = await post(path, model=MODEL, prompt="Send it back", add_special_tokens=False)
            ids = encode("Send it back")
            assert found == {
                "count": len(ids),
                "max_model_len": 512,
                "tokens": ids,
                "token_strs": None,
            }
        framed = await post("/tokenize", prompt="Send it")
        assert framed["tokens"] == template.framed_row("Send it").ids.tolist()
        told = await post("/tokenize", prompt="Send it", return_token_strs=True)
        assert "".join(told["token_strs"][-2:]) in "Send it"
        message = from_openai(HELLO)
        asked = await post("/tokenize", messages=[HELLO])
        assert asked["tokens"] == template.prompt_ids([message])
        closed = await post("/tokenize", messages=[HELLO], add_generation_prompt=False)
        assert closed["tokens"] == encode(template.dialogue([message]))
        long = await post("/tokenize", prompt="order " * 5000, add_special_tokens=False)
        assert long["count"] == len(encode("order " * 5000))
        back = await post("/v1/detokenize", model=MODEL, tokens=asked["tokens"])
        assert back == {"prompt": template.prompt([message])}
        for body, words in (
            ({"prompt": "a", "messages": [HELLO]}, "either `prompt` or `messages`"),
            ({"prompt": 3}, "prompt: a text is required"),
            ({"prompt": "a", "colour": 1}, "colour: unknown parameter"),
            ({"messages": []}, "messages: a list of at least one"),
            ({"messages": [{"role": "wizard"}]}, "unknown role 'wizard'"),
            ({"prompt": "a", "tools": [], "add_special_tokens": 1}, "true or false"),
        ):
            assert words in (await post("/tokenize", 400, **body))["error"]["message"]
        for tokens in ([-1], [10**9], ["a"], "a", [True]):
            error = (await post("/detokenize", 400, tokens=tokens))["error"]
            assert error["param"] == "tokens"

    models = {MODEL: {"versions": [{"model": MODEL}], "tokenizer": str(tmp_path)}}
    with_gateway(tmp_path, work, models=models)


def test_without_a_tokenizer_or_a_filter_the_remedy_is_told(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        for path, body, words in (
            ("/tokenize", {"prompt": "a"}, "as `models.m.tokenizer`"),
            ("/v1/moderations", {"input": "a"}, "name one as `guard`"),
        ):
            answer = await live.http.post(path, json=body)
            assert answer.status_code == 404
            assert words in answer.json()["error"]["message"]

    with_gateway(tmp_path, work)


def test_moderations_are_the_filter_s(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        part = {"type": "text", "text": "a red lamp"}
        body: Any = {"input": ["a chair", "a lamp", part], "model": "omni-moderation-latest"}
        found = (await live.http.post("/v1/moderations", json=body)).json()
        ModerationCreateResponse.model_validate(found, strict=True)
        assert found["model"] == "toy-1"
        clean, own, known = found["results"]
        assert [one["flagged"] for one in found["results"]] == [False, True, True]
        assert not any(clean["categories"].values())
        assert own["categories"]["lighting"]
        assert sum(own["category_scores"].values()) == 1.0
        assert known["categories"]["violence"]
        assert "lighting" not in known["categories"]
        for wrong, words in (
            ({"input": [{"type": "image_url"}]}, "input[0].type: only texts"),
            ({"input": 3}, "input: a text"),
            ({"input": []}, "input: at least one"),
            ({"input": "a", "colour": 1}, "colour: unknown"),
        ):
            answer = await live.http.post("/v1/moderations", json=wrong)
            assert answer.status_code == 400
            assert words in answer.json()["error"]["message"]

    with_gateway(tmp_path, work, guard="tests.gateway.test_surfaces:make_guard")


def test_vectors_are_told_in_base64_though_the_engine_writes_numbers(tmp_path: Path) -> None:
    vectors = [[0.5, -0.25], [1.0, 2.0]]
    data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(vectors)]
    usage = {"prompt_tokens": 2, "total_tokens": 2}

    async def work(live: Live) -> None:
        answer = {"object": "list", "model": MODEL, "data": data, "usage": usage}
        live.engine.other["/embeddings"] = answer
        body: Any = {"model": MODEL, "input": ["a", "b"]}
        plain = (await live.http.post("/v1/embeddings", json=body)).json()
        assert [one["embedding"] for one in plain["data"]] == vectors
        body |= {"encoding_format": "base64"}
        packed = (await live.http.post("/v1/embeddings", json=body)).json()
        raw = [base64.b64decode(one["embedding"]) for one in packed["data"]]
        assert [list(struct.unpack("<2f", one)) for one in raw] == vectors
        # the client asks for base64 by itself, and reads it
        found = await live.client.embeddings.create(model=MODEL, input=["a", "b"])
        assert [one.embedding for one in found.data] == vectors

    models = {MODEL: {"versions": [{"model": MODEL}], "kinds": ["embed"]}}
    with_gateway(tmp_path, work, models=models)


@pytest.fixture
def reranker(tmp_path: Path) -> Path:
    """A tiny decoder with one score."""
    import torch

    from dialoop.core.device import find
    from dialoop.models.load import load_model

    checkpoint = make_tiny_checkpoint(tmp_path / "tiny", "internlm3")
    folder = tmp_path / "ranker"
    shutil.copytree(checkpoint, folder)
    model: Any = load_model(
        checkpoint, device=find("cpu"), dtype="fp32", head="score", num_scores=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


def test_our_own_reranker_is_asked_as_jina_and_cohere_are(reranker: Path, tmp_path: Path) -> None:
    from tests.serve.test_server import LiveServer

    from dialoop.serve.spec import ServeJob

    texts = ["Where is my order?", "Send it back", "12 34 567"]
    documents: dict[str, list[Any]] = {"jina": texts, "cohere": [{"text": one} for one in texts]}

    async def work(live: Live) -> None:
        told: list[Any] = []
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            for given in documents.values():
                body: Any = {"model": MODEL, "query": "order", "documents": given}
                more = {"top_n": 2, "return_documents": True}
                answer = await live.http.post(path, json=body | more)
                assert answer.status_code == 200, answer.text
                told.append(answer.json())
        results = told[0]["results"]
        scores = [one["relevance_score"] for one in results]
        for other in told[1:]:
            others = other["results"]
            assert [one["index"] for one in others] == [one["index"] for one in results]
            assert [one["relevance_score"] for one in others] == pytest.approx(scores)
        assert scores == sorted(scores, reverse=True)
        assert [one["document"]["text"] for one in results] == [texts[n["index"]] for n in results]
        assert told[0]["model"] == MODEL
        assert told[0]["usage"]["total_tokens"] > 0

    job = ServeJob(
        model=str(reranker),
        port=0,
        task="rerank",
        engine="transformers",
        device="cpu",
        dtype="fp32",
        threads=1,
    )
    with LiveServer(job) as served:
        entry = {"versions": [{"model": "ranker"}], "kinds": ["rerank"]}
        with_gateway(tmp_path, work, engines=[served.server.url], models={MODEL: entry})
