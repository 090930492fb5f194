"""A teacher behind an endpoint: the likeliest tokens at every labelled place of a packed row.

Two spellings are understood: `prompt_logprobs` of vLLM's completions, and the older `echo` with
`logprobs` where tokens are told as `token_id:123` (`return_tokens_as_token_ids`). Anything else
names tokens by text, from which ids cannot be told for sure, and is refused.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.chat.tokenizer import Tokenizer
    from dialoop.train.batch import Batch
    from dialoop.train.endpoint import Endpoint

PROBE = "The teacher and the student must read these 27 words alike."

Told = list[dict[int, float]]
"""At each place of a document, log-probabilities by id of the token there."""


def likeliest(endpoint: Endpoint, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of the k likeliest tokens at each labelled place.

    Returns:
        (N, K) int64 and (N, K) float32, on the batch's device.

    Raises:
        UserError: the endpoint tells no log-probabilities of prompts, or has another vocabulary.
        UpstreamError: it does not answer.
    """
    ids = batch.ids.tolist()
    documents = [ids[start:end] for start, end in pairwise(batch.bounds)]
    bodies = [_body(document, k) for document in documents]
    replies = endpoint.post_all("completions", bodies)
    told = [place for reply in replies for place in _told(reply, endpoint)]
    if len(told) != len(ids):
        raise UserError(
            f"`{endpoint.url}` tells of {len(told)} tokens where {len(ids)} were sent",
            hint="serve the teacher by a server that takes token ids and leaves them as they are",
        )
    rows = [_first(told[place + 1], k, endpoint) for place in batch.rows.tolist()]
    found = torch.tensor([[*row] for row in rows], dtype=torch.long, device=batch.ids.device)
    logps = torch.tensor([[*row.values()] for row in rows], device=batch.ids.device)
    return found, logps


def check_vocabulary(student: Tokenizer, teacher: Tokenizer, name: str) -> None:
    """Refuse a teacher whose ids mean other texts.

    Raises:
        UserError: the vocabularies differ; one token that does is named.
    """
    if student.digest == teacher.digest:
        return
    for n in range(max(student.vocab_size, teacher.vocab_size)):
        own, other = (
            t.decode([n], skip_special=False) if n < t.vocab_size else None
            for t in (student, teacher)
        )
        if own != other:
            raise UserError(
                f"`{name}` has another vocabulary: token {n} is {other!r} there and {own!r} here",
                hint="choose a teacher of the student's family",
            )


def check_endpoint(endpoint: Endpoint, student: Tokenizer) -> None:
    """Ask a teacher about a line of text, and refuse it where an id means something else to it.

    Raises:
        UserError: it tells no log-probabilities of prompts, or has another vocabulary.
    """
    ids = student.encode(PROBE)
    reply = endpoint.post("completions", _body(ids, 1))
    _told(reply, endpoint)
    places = _choice(reply).get("prompt_logprobs") or []
    for place, token in zip(places[1:], ids[1:], strict=False):
        text = student.decode([token], skip_special=False)
        other = place.get(str(token), {}).get("decoded_token")
        if other is not None and other != text:
            raise UserError(
                f"`{endpoint.url}` has another vocabulary: token {token} is {other!r} there and"
                f" {text!r} here",
                hint="choose a teacher of the student's family",
            )


def _body(ids: list[int], k: int) -> dict[str, Any]:
    return {
        "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": k,
        "echo": True, "logprobs": k, "return_tokens_as_token_ids": True,
    }  # fmt: skip


def _choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices") or [{}]
    return choices[0]


def _told(reply: dict[str, Any], endpoint: Endpoint) -> Told:
    """What a reply tells of the prompt's tokens, the first of which has no probability."""
    choice = _choice(reply)
    if places := choice.get("prompt_logprobs"):
        return [{int(i): float(v["logprob"]) for i, v in (p or {}).items()} for p in places]
    echoed = (choice.get("logprobs") or {}).get("top_logprobs") or []
    names = [name for place in echoed for name in place or {}]
    if names and all(name.startswith("token_id:") for name in names):
        by_id = [{int(n[9:]): float(v) for n, v in (p or {}).items()} for p in echoed]
        return by_id[:-1]  # the last is the one token that was generated
    raise UserError(
        f"`{endpoint.url}` tells no log-probabilities of a prompt's tokens by id",
        hint="serve the teacher with vLLM, or give a `teacher` on this machine",
    )


def _first(place: dict[int, float], k: int, endpoint: Endpoint) -> dict[int, float]:
    ranked = dict(sorted(place.items(), key=lambda item: -item[1])[:k])
    if len(ranked) < k:
        raise UserError(
            f"`{endpoint.url}` tells {len(ranked)} tokens a place where {k} are wanted",
            hint="lower `top_k`, or serve with a higher --max-logprobs",
        )
    return ranked
