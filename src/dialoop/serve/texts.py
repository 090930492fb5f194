"""Embeddings as OpenAI has them, and reranking as Jina and Cohere have it."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from typing import TYPE_CHECKING, Any, cast

from dialoop.engines import Request, Sampling
from dialoop.serve import fields
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.template import Row, Template
    from dialoop.engines import Engine

Json = dict[str, Any]
_ONE = Sampling(max_tokens=1, temperature=0.0)
_EMBED = {"model", "input", "encoding_format", "dimensions", "user"}
_RERANK = {"model", "query", "documents", "top_n", "return_documents", "user"}
MAX_TEXTS = 2048


async def embed(body: Json, template: Template, engine: Engine, model: str) -> Json:
    """The vectors of texts.

    Raises:
        ApiError: a field is wrong.
    """
    _check(body, _EMBED, model)
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise bad("encoding_format", "float or base64")
    wanted = fields.integer(body, "dimensions", 1, None)
    requests = _inputs(body.get("input"), template, engine.info.max_length)
    vectors = await _ask(engine, requests)
    if wanted and wanted > len(vectors[0]):
        raise bad("dimensions", f"the vectors of this model have {len(vectors[0])} numbers")
    listed = [
        {"object": "embedding", "index": n, "embedding": _spelt(_cut(vector, wanted), form)}
        for n, vector in enumerate(vectors)
    ]
    return {"object": "list", "model": model, "data": listed, "usage": _usage(requests)}


async def rerank(body: Json, template: Template, engine: Engine, model: str) -> Json:
    """How well documents answer a query, best first; scores are from 0 to 1.

    Raises:
        ApiError: a field is wrong.
    """
    _check(body, _RERANK, model)
    query = body.get("query")
    if not isinstance(query, str) or not query:
        raise bad("query", "a text is required")
    texts = _documents(body.get("documents"))
    num = fields.integer(body, "top_n", 1, None) or len(texts)
    rows = [template.framed_row(query, text) for text in texts]
    requests = [_request(row, engine.info.max_length, "documents") for row in rows]
    scores = [1 / (1 + math.exp(-vector[0])) for vector in await _ask(engine, requests)]
    best = sorted(range(len(texts)), key=lambda n: -scores[n])[:num]
    results: list[Json] = [{"index": n, "relevance_score": scores[n]} for n in best]
    if fields.flag(body, "return_documents"):
        results = [item | {"document": {"text": texts[item["index"]]}} for item in results]
    return {"model": model, "results": results, "usage": _usage(requests)}


def _check(body: Json, known: set[str], model: str) -> None:
    if unknown := body.keys() - known:
        raise bad(min(unknown), "unknown parameter")
    if body.get("model") != model:
        raise ApiError(
            404,
            f"model `{body.get('model')}` is not served here (known: {model})",
            param="model",
            code="model_not_found",
        )


def _inputs(raw: Any, template: Template, limit: int) -> list[Request]:
    items = cast("list[Any]", raw) if isinstance(raw, list) else [raw]
    if items and all(type(item) is int for item in items):
        items = [items]
    if not 1 <= len(items) <= MAX_TEXTS:
        raise bad("input", f"from 1 to {MAX_TEXTS} texts are read at once")
    return [_input(item, template, limit) for item in items]


def _input(item: Any, template: Template, limit: int) -> Request:
    if isinstance(item, str) and item:
        return _request(template.framed_row(item), limit, "input")
    if isinstance(item, list) and item:
        ids = cast("list[Any]", item)
        size = template.tokenizer.vocab_size
        if all(type(value) is int and 0 <= value < size for value in ids):
            _refuse_long(len(ids), limit, "input")
            return Request(tuple(ids), _ONE)
    raise bad("input", "a text, token ids, or a list of either is required, none of them empty")


def _request(row: Row, limit: int, param: str) -> Request:
    _refuse_long(len(row), limit, param)
    return Request(tuple(row.ids.tolist()), _ONE, second=row.second)


def _refuse_long(num: int, limit: int, param: str) -> None:
    if num >= limit:
        raise ApiError(
            400,
            f"{param}: a text has {num} tokens, and this model reads up to {limit - 1}",
            param=param,
            code="context_length_exceeded",
        )


def _documents(raw: Any) -> list[str]:
    items = cast("list[Any]", raw) if isinstance(raw, list) else []
    texts = [cast("Json", one).get("text") if isinstance(one, dict) else one for one in items]
    if not 1 <= len(texts) <= MAX_TEXTS or not all(isinstance(text, str) for text in texts):
        raise bad("documents", f"from 1 to {MAX_TEXTS} texts, or objects with a `text`")
    return cast("list[str]", texts)


async def _ask(engine: Engine, requests: Sequence[Request]) -> list[tuple[float, ...]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_one(engine, request)) for request in requests]
    return [task.result() for task in tasks]


async def _one(engine: Engine, request: Request) -> tuple[float, ...]:
    async for delta in engine.generate(request):
        if delta.finish:
            return delta.vector
    raise AssertionError("an engine ended a stream without a reason")


def _cut(vector: tuple[float, ...], num: int | None) -> tuple[float, ...]:
    """The first numbers of a vector, again of length 1 (Kusupati et al. 2022, arXiv:2205.13147)."""
    if num is None:
        return vector
    size = math.sqrt(sum(value * value for value in vector[:num])) or 1.0
    return tuple(value / size for value in vector[:num])


def _spelt(vector: tuple[float, ...], form: str) -> Any:
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _usage(requests: Sequence[Request]) -> Json:
    num = sum(len(request.prompt_ids) for request in requests)
    return {"prompt_tokens": num, "total_tokens": num}
