"""A model behind an OpenAI-compatible endpoint under measurement."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoop.chat.message import from_openai, to_openai, tool_to_openai
from dialoop.chat.tool_formats import json_call
from dialoop.core.errors import UpstreamError, UserError
from dialoop.core.events import Progress
from dialoop.evaluate.tasks import HeldOut, Prompt, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dialoop.chat.message import Message
    from dialoop.core.events import Event
    from dialoop.data.load import SampleSet
    from dialoop.evaluate.spec import Generation
    from dialoop.train.endpoint import Endpoint

Json = dict[str, Any]

LIKELIEST = 20
"""Tokens whose log-probability is asked for: the most that OpenAI's API gives."""
TEXTS = 32
"""Texts embedded by one request."""


@dataclass(frozen=True, slots=True)
class RemoteSubject:
    """A model that is asked over HTTP."""

    endpoint: Endpoint
    generation: Generation
    emit: Callable[[Event], None]

    @property
    def digest(self) -> str:
        """Empty: an endpoint does not say which tokenizer it has."""
        return ""

    def held_out(self, samples: SampleSet, row_tokens: int) -> HeldOut:
        """The loss of records, which an endpoint cannot tell.

        Raises:
            UserError: always.
        """
        del samples, row_tokens
        raise UserError(
            "task `loss` needs the log-probabilities of given answers, which no endpoint tells",
            hint="give the checkpoint's folder as `--model`, or leave the task out",
        )

    def answers(self, dialogues: Sequence[Sequence[Message]]) -> list[str]:
        """The answer to each dialogue, in order.

        Raises:
            UserError: the endpoint refuses a request.
            UpstreamError: it cannot be reached, or fails again and again.
        """
        return [reply.text for reply in self.replies([Prompt(tuple(d)) for d in dialogues])]

    def replies(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """The answer to each prompt, in order, with the calls in it.

        Raises:
            UserError: the endpoint refuses a request.
            UpstreamError: it cannot be reached, or fails again and again.
        """
        found = self._post_all("chat/completions", [self._body(p) for p in prompts], "answer")
        return [_reply(answer, bool(p.tools)) for p, answer in zip(prompts, found, strict=True)]

    def choices(
        self, dialogues: Sequence[Sequence[Message]], words: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Log p that the answer to each dialogue begins with each word, of the likeliest tokens.

        Raises:
            UserError: the endpoint gives no log-probabilities.
            UpstreamError: it cannot be reached, or fails again and again.
        """
        bodies = [
            self._body(Prompt(tuple(dialogue)))
            | {"logprobs": True, "top_logprobs": LIKELIEST, "max_tokens": 1, "temperature": 0}
            for dialogue in dialogues
        ]
        found = self._post_all("chat/completions", bodies, "choices")
        return [_chosen(answer, some) for answer, some in zip(found, words, strict=True)]

    def vectors(self, texts: Sequence[str], before: str) -> NDArray[np.float32]:
        """(texts, width) the embedding of each text, of length 1.

        Raises:
            UserError: the endpoint refuses a request.
            UpstreamError: it cannot be reached, or fails again and again.
        """
        parts = [texts[n : n + TEXTS] for n in range(0, len(texts), TEXTS)]
        bodies = [{"input": [before + text for text in part]} for part in parts]
        replies = self._post_all("embeddings", bodies, "embed")
        listed = [sorted(reply["data"], key=lambda item: item["index"]) for reply in replies]
        vectors = np.array([i["embedding"] for part in listed for i in part], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def num_tokens(self, text: str) -> int:
        """The tokens of a message with this text, as the endpoint counts them."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        return int(self.endpoint.post("chat/completions", body)["usage"]["prompt_tokens"])

    def address(self) -> Endpoint:
        """Where it is asked over HTTP."""
        return self.endpoint

    def _body(self, prompt: Prompt) -> Json:
        settings = self.generation
        body: Json = {
            "messages": [to_openai(item) for item in prompt.messages],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
        }
        if settings.temperature:
            body |= {"top_p": settings.top_p, "seed": settings.seed}
        if prompt.tools:
            body["tools"] = [tool_to_openai(tool) for tool in prompt.tools]
        return body

    def _post_all(self, path: str, bodies: Sequence[Json], task: str) -> list[Json]:
        replies: list[Json] = []
        with ThreadPoolExecutor(self.endpoint.parallel) as pool:
            for reply in pool.map(lambda body: self.endpoint.post(path, body), bodies):
                replies.append(reply)
                self.emit(Progress(task, len(replies), len(bodies), "requests"))
        return replies


def _reply(answer: Json, has_tools: bool) -> Reply:
    try:
        spoken = from_openai(answer["choices"][0]["message"], "choices[0].message")
    except (KeyError, IndexError, TypeError, UserError) as error:
        raise UpstreamError(
            f"the endpoint's reply is no chat completion: {str(answer)[:200]}",
            hint="check that the address ends where `/chat/completions` begins",
        ) from error
    if spoken.tool_calls or not has_tools:
        return Reply(spoken.text.strip(), spoken.tool_calls)
    return Reply(*json_call.parse(spoken.text.strip()))


def _chosen(answer: Json, words: Sequence[str]) -> list[float]:
    told = (answer["choices"][0].get("logprobs") or {}).get("content") or []
    if not told or not told[0].get("top_logprobs"):
        raise UserError(
            "the endpoint tells no log-probabilities",
            hint="measure by generation: `--tasks '{kind: choice, by: generation, ...}'`",
        )
    sums = dict.fromkeys(words, -math.inf)
    for item in told[0]["top_logprobs"]:
        word = item["token"].strip()
        if word in sums:
            sums[word] = float(np.logaddexp(sums[word], item["logprob"]))
    return [sums[word] for word in words]
