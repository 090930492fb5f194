"""Embeddings and reranking by a live server, against transformers in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from pydantic import ValidationError
from tests.serve.test_server import LiveServer

from dialoop.chat.template import Template
from dialoop.core.errors import UserError
from dialoop.core.events import ignore
from dialoop.engines.choose import prepare
from dialoop.engines.plan import prepare_external
from dialoop.serve.spec import InferJob, ServeJob

TEXTS = ["Where is my order?", "Send it back", "我的订单在哪里？您的订单今天早上已经发货"]  # noqa: RUF001


def job(folder: Path, **settings: Any) -> ServeJob:
    fields = {"device": "cpu", "dtype": "fp32", "threads": 1, "port": 0} | settings
    return ServeJob.model_validate({"model": str(folder)} | fields)


def served(folder: Path, work: Callable[[openai.OpenAI], Any], **settings: Any) -> Any:
    """What a client gets from a server that lives as long as it asks."""
    with (
        LiveServer(job(folder, **settings)) as live,
        openai.OpenAI(base_url=live.server.url, api_key="x", max_retries=0) as client,
    ):
        return work(client)


def states(folder: Path, ids: list[int]) -> np.ndarray:
    """(T, D) hidden states of one text by itself."""
    import torch
    from transformers import AutoModel

    from dialoop.models.families import register_all

    register_all()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()


def test_texts_get_the_vectors_of_their_last_tokens(checkpoint: Path, template: Template) -> None:
    rows = [template.framed_row(text).ids.tolist() for text in TEXTS]

    def work(client: openai.OpenAI) -> Any:
        def ask(**fields: Any) -> Any:
            create: Any = client.embeddings.create
            return create(**({"model": "tiny-model", "input": TEXTS} | fields))

        with pytest.raises(openai.BadRequestError, match="have 64 numbers"):
            ask(dimensions=65)
        with pytest.raises(openai.BadRequestError, match="none of them empty"):
            ask(input=["x", ""])
        with pytest.raises(openai.BadRequestError) as caught:
            ask(input="x " * 600)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError, match="was started to embed, not to generate"):
            client.completions.create(model="tiny-model", prompt="x")
        packed = ask()  # the client asks for base64 by itself
        return packed, ask(encoding_format="float"), ask(dimensions=16), ask(input=rows)

    packed, plain, short, by_ids = served(checkpoint, work, task="embed")
    assert packed.usage.prompt_tokens == sum(map(len, rows))
    for n, ids in enumerate(rows):
        want = states(checkpoint, ids)[-1]
        want = want / np.linalg.norm(want)
        for found in (packed, plain, by_ids):
            # float32; padding beside other texts
            assert np.allclose(found.data[n].embedding, want, atol=1e-5)
        cut = want[:16] / np.linalg.norm(want[:16])
        assert np.allclose(short.data[n].embedding, cut, atol=1e-5)


@pytest.fixture(scope="module")
def reranker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny decoder with one score."""
    import shutil

    import torch

    from dialoop.core.device import find
    from dialoop.models.load import load_model

    folder = tmp_path_factory.mktemp("rerank") / "ranker"
    shutil.copytree(checkpoint, folder)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = load_model(
            checkpoint, device=find("cpu"), dtype="fp32", head="score", num_scores=1
        )
        torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


def test_documents_are_ranked_by_the_models_score(reranker: Path, template: Template) -> None:
    body: dict[str, Any] = {"model": "ranker", "query": "order", "documents": TEXTS}

    def work(client: openai.OpenAI) -> Any:
        def post(**fields: Any) -> Any:
            return client.post("/rerank", body=body | fields, cast_to=object)

        with pytest.raises(openai.BadRequestError, match="documents: from 1 to"):
            post(documents=[])
        with pytest.raises(openai.BadRequestError, match="query: a text is required"):
            post(query=None)
        return post(), post(top_n=1, return_documents=True)

    whole, first = served(reranker, work)
    import torch
    from safetensors.torch import load_file

    weight = load_file(reranker / "model.safetensors")["score.weight"][0].numpy()
    rows = [template.framed_row("order", text).ids.tolist() for text in TEXTS]
    logits = [float(states(reranker, ids)[-1] @ weight) for ids in rows]
    want = torch.tensor(logits).sigmoid().tolist()
    assert {r["index"]: r["relevance_score"] for r in whole["results"]} == pytest.approx(
        dict(enumerate(want)), abs=1e-5
    )
    best = int(np.argmax(want))
    assert [r["index"] for r in whole["results"]] == sorted(range(3), key=lambda n: -want[n])
    assert first["results"][0]["document"] == {"text": TEXTS[best]}
    assert len(first["results"]) == 1


def test_a_task_that_the_model_does_not_end_in_is_refused(checkpoint: Path, reranker: Path) -> None:
    for folder, task, words in [
        (checkpoint, "rerank", "not in scores"),
        (reranker, "generate", "not in a distribution"),
        (reranker, "embed", "are no vectors"),
    ]:
        with pytest.raises(UserError, match=words):
            prepare(folder, job(folder, task=task), ignore)
    infer = {"model": str(reranker), "input": "x", "output": "y", "device": "cpu"}
    with pytest.raises(UserError, match="not in a distribution"):
        prepare(reranker, InferJob.model_validate(infer), ignore)
    with pytest.raises(ValidationError, match="give the adapter as the model"):
        InferJob.model_validate(infer | {"adapters": {"a": "b"}})
    with pytest.raises(UserError, match="task: vllm is not asked to rerank here"):
        prepare_external(reranker, job(reranker, task="rerank", engine="vllm"), ignore)
    with pytest.raises(UserError, match="OpenVINO is not asked to embed"):
        prepare(checkpoint, job(checkpoint, task="embed", engine="openvino"), ignore)
