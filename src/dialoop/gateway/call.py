"""One request on its way through the gateway: what was asked, and what becomes known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from dialoop.gateway.pool import Model
    from dialoop.gateway.spec import Kind
    from dialoop.gateway.tracing import Context, Span

Json = dict[str, Any]


@dataclass(slots=True)
class Call:
    """A request whose fields were checked; times are of the loop's clock, in seconds."""

    id: str
    """Told to the client and to the engine as `x-request-id`."""
    kind: Kind
    path: bytes
    """Where engines are asked."""
    body: Json
    """As it is sent to the engine, but for the model's name."""
    model: Model
    began: float
    deadline: float
    affinity: int | None = None
    """What a conversation is known by when an engine is chosen."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Sent to the engine, beside `traceparent`."""
    trace: Context | None = None
    """Where it is in a trace."""
    spans: list[Span] | None = None
    """Gets a span of each attempt; None where nobody wants them."""
    is_stream: bool = False
    wants_usage: bool = False
    """Whether the client's stream has a chunk that counts tokens."""
    num_choices: int = 1
    engine: str = ""
    """The one that answered, or was asked last."""
    version: str = ""
    """The model's name there."""
    served: Model | None = None
    """The model that answered: the one that was asked for, or a fallback."""
    num_attempts: int = 0
    num_events: int = 0
    """Events with content that came: about the tokens of an answer that was cut."""
    queue_s: float = 0.0
    """Time in line."""
    upstream_s: float = 0.0
    """Time of waiting for engines before the first byte to the client."""
    first_at: float | None = None
    """When the first content came."""
    last_at: float | None = None
    usage: Usage = field(default_factory=lambda: Usage())
    finish: str | None = None
    """Why the (first) answer ended."""


@dataclass(slots=True)
class Usage:
    """Tokens, as the engine counts them."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    """Of the prompt: found in the engine's prefix cache."""
    is_known: bool = False

    def learn(self, raw: Any) -> None:
        """Read an OpenAI usage object; anything else tells nothing."""
        found = as_object(raw)
        if not found:
            return
        self.prompt = _count(found, "prompt_tokens")
        self.completion = _count(found, "completion_tokens")
        self.cached = _count(as_object(found.get("prompt_tokens_details")), "cached_tokens")
        self.is_known = True


def as_object(value: Any) -> Json:
    """A JSON object, or an empty one where the value is something else."""
    return cast("Json", value) if isinstance(value, dict) else {}


def _count(raw: Json, name: str) -> int:
    value = raw.get(name)
    return value if type(value) is int and value >= 0 else 0
