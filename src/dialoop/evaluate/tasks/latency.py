"""Latency and throughput of an endpoint: first token, time between tokens, requests a second."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from typing_extensions import override

from dialoop.chat.message import message, to_openai
from dialoop.evaluate.result import Measured, Observed, Score
from dialoop.evaluate.stream import timed
from dialoop.evaluate.tasks import Task

if TYPE_CHECKING:
    from dialoop.evaluate.stream import Timed
    from dialoop.evaluate.tasks import Material, Subject

PERCENTILES = (50, 90, 99)


class Latency(Task, frozen=True):
    """Times of streamed answers, with a number of clients that each ask again at once."""

    kind: Literal["latency"] = "latency"
    clients: PositiveInt = 4
    """Clients at once; each waits for its answer before it asks again."""
    requests: PositiveInt = 32
    """Requests that are timed, all clients together."""
    warmup: int = Field(default=2, ge=0)
    """Requests before them that are not timed."""
    max_tokens: PositiveInt = 64
    """Longest answer."""
    prompt: str = "Request {n}: tell me in a few sentences how a bicycle keeps its balance."
    """What is asked where no data set is given; `{n}` is the request's number, so that no cache of
    whole prompts answers."""
    max_s: PositiveFloat = 600
    """No request begins later than this; the rest is left out and counted."""

    @override
    def measure(self, subject: Subject, material: Material) -> Measured:
        """Time the requests."""
        endpoint = subject.address()
        bodies = self._bodies(material)
        for body in bodies[: self.warmup]:
            timed(endpoint, body)
        began = time.monotonic()

        def ask(body: dict[str, Any]) -> Timed | None:
            late = time.monotonic() - began > self.max_s
            return None if late else timed(endpoint, body)

        with ThreadPoolExecutor(self.clients) as pool:
            found = [t for t in pool.map(ask, bodies[self.warmup :]) if t is not None]
        return Measured(task=self.title, scores=tuple(_scores(found, self.requests)))

    def _bodies(self, material: Material) -> list[dict[str, Any]]:
        num = self.warmup + self.requests
        dialogues = [
            list(s.messages[:-1])
            for s in islice((s for s in material.samples or () if s.kind == "dialogue"), num)
        ]
        asked = [
            dialogues[n % len(dialogues)]
            if dialogues
            else [message("user", self.prompt.replace("{n}", str(n)))]
            for n in range(num)
        ]
        shared = {"max_tokens": self.max_tokens, "temperature": 0}
        return [{"messages": [to_openai(m) for m in turns]} | shared for turns in asked]


def _scores(found: list[Timed], wanted: int) -> list[Score]:
    seconds = max(t.ended_s for t in found) - min(t.began_s for t in found)
    tokens = sum(t.num_tokens for t in found)
    between = [t.between_s for t in found]
    times = {
        "first token": [t.first_s for t in found],
        "between tokens": [b for b in between if b is not None],
        "whole answer": [t.total_s for t in found],
    }
    scores: list[Score] = []
    for name, values in times.items():
        if not values:
            continue
        observed = [Observed(id=str(n), value=1000 * value) for n, value in enumerate(values)]
        scores.append(Score.of(f"{name}, mean", observed, unit="ms", better="lower"))
        for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True):
            scores.append(
                Score(name=f"{name}, p{p}", value=1000 * value, unit="ms", better="lower")
            )
    rates = {"requests a second": len(found) / seconds, "tokens a second": tokens / seconds}
    scores += [Score(name=k, value=v, unit="", better="higher") for k, v in rates.items()]
    counts = {"requests": len(found), "requests left out": wanted - len(found)}
    return [
        *scores,
        *(Score(name=k, value=v, unit="", better="neither") for k, v in counts.items()),
    ]
