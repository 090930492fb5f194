"""Engines: prompt tokens to answer tokens behind one protocol, each in a process of its own.

An engine speaks token ids only. Templates, text and stop strings are the caller's business
(`engines.text`), so that every engine behaves alike there. The embedded engines (`openvino`,
`transformers`) run in a worker process: a crash or a long step of theirs cannot take the server
with it, and the server never imports their packages. vLLM, SGLang and LMDeploy (`external`) run as
servers of their own, in environments of their own, under `supervisor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from dialoop.core.errors import DialoopError

FinishReason = Literal["stop", "length"]
Task = Literal["generate", "embed", "rerank"]
"""Write an answer, give a text's vector, or score how well a passage answers a query."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen."""

    max_tokens: int
    """At most so many tokens are generated, at least 1."""
    temperature: float = 1.0
    """0 takes the likeliest token; up to 2."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability, in (0, 1]."""
    top_k: int = 0
    """Only this many likeliest tokens; 0 for all."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token already generated, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token for each time it was generated, in [-2, 2]."""
    seed: int | None = None
    """The same seed, prompt and settings give the same tokens; None draws one."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their logits."""
    logprobs: int | None = None
    """Tell the log-probability of every token, and of so many likeliest ones beside it; None tells
    nothing."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue."""

    prompt_ids: tuple[int, ...]
    """Not empty."""
    sampling: Sampling
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer; the one that did is not part of it."""
    schema: str | None = None
    """A JSON Schema, as JSON: the answer is a value that it allows, and nothing else."""
    adapter: str | None = None
    """An adapter that was loaded under this name; None asks the model as it was started."""
    second: int = 0
    """Where a second text begins, for models that tell two texts apart; 0 where there is one."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely one token was, by the model alone: before penalties, bias, temperature, schema."""

    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the last delta of the same request."""

    ids: tuple[int, ...]
    finish: FinishReason | None = None
    """Set on the last delta only."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for every id where they were asked for, else none."""
    vector: tuple[float, ...] = ()
    """What a model that reads gives, at once: an embedding of length 1, or one score."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine that has started is."""

    engine: str
    """`openvino`, `transformers`, `vllm`."""
    max_length: int
    """Prompt and answer together, in tokens."""
    dtype: str
    """`bf16`, `fp16` or `fp32`: of the arithmetic."""
    device: str
    threads: int
    task: Task = "generate"


class Engine(Protocol):
    """A model that answers; one contract suite holds for all."""

    @property
    def info(self) -> EngineInfo:
        """What has started.

        Raises:
            RuntimeError: nothing has started.
        """
        ...

    @property
    def num_open(self) -> int:
        """Requests being answered or waiting."""
        ...

    @property
    def failure(self) -> DialoopError | None:
        """Why nothing more will ever be answered; None while the engine works."""
        ...

    async def wait_failed(self) -> None:
        """Return when nothing more will ever be answered."""
        ...

    async def start(self) -> None:
        """Load the model and serve one token.

        Raises:
            DialoopError: the model or the machine does not allow it.
        """
        ...

    async def health(self) -> None:
        """Serve one token.

        Raises:
            UpstreamError: it cannot.
        """
        ...

    def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Answer one request; closing the iterator early aborts the work on it.

        Raises:
            UserError: the prompt leaves no room in the model's length, or the engine cannot do what
                is asked.
            UpstreamError: the engine died or is draining; never after the last delta.
        """
        ...

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Make a PEFT adapter ready, which requests then name.

        Raises:
            UserError: the name is in use, or the adapter does not fit this model or engine.
            UpstreamError: the engine failed.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; its open requests end with an error.

        Raises:
            UserError: no adapter has this name.
        """
        ...

    async def drain(self) -> None:
        """Refuse new requests and wait until the open ones have ended."""
        ...

    async def stop(self) -> None:
        """End at once; open requests end with an UpstreamError."""
        ...


def unknown_adapter(name: str | None, known: Iterable[str | None]) -> UserError:
    """No adapter is loaded under this name."""
    names = ", ".join(sorted(one for one in known if one)) or "none"
    return UserError(f"no adapter `{name}` is loaded (known: {names})")
