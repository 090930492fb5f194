"""What can be asked of the gateway: engines, models, patience, limits, where things are kept."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from dialoop.core.schema import Spec
from dialoop.gateway.context.policy import ContextPolicy

Kind = Literal["chat", "text", "embed", "rerank"]
Policy = Literal["affinity", "least_loaded", "round_robin"]


class EngineEntry(Spec, frozen=True):
    """One OpenAI-compatible server that answers requests."""

    name: str = ""
    """What logs, metrics and models call it; host and port of `url` unless given."""
    url: str
    """Its base URL with `/v1`, such as `http://127.0.0.1:8001/v1`."""
    api_key: SecretStr | None = None
    """The bearer token that it wants."""
    max_concurrent: int = Field(default=256, ge=1)
    """Requests that one worker of the gateway may have open there; further ones wait in line."""
    is_draining: bool = False
    """Let its open requests end and give it no new ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: `{self.url}` is no http or https URL")
        return self

    @property
    def label(self) -> str:
        """Its name."""
        return self.name or urlsplit(self.url).netloc


class Version(Spec, frozen=True):
    """One version of a model: a name that some engines know."""

    model: str
    """Its name at the engines."""
    engines: tuple[str, ...] = ()
    """Names of the engines that have it; all of them unless given."""
    weight: float = Field(default=1.0, ge=0)
    """Its share of the conversations, against the other versions' weights; 0 gives it none."""


class ModelEntry(Spec, frozen=True):
    """A model as clients name it."""

    versions: tuple[Version, ...] = Field(min_length=1)
    """What answers. Two with weights 95 and 5 are a canary; a conversation keeps its version."""
    fallbacks: tuple[str, ...] = ()
    """Models that answer when no engine of this one can, in order. The answer names the one."""
    kinds: tuple[Kind, ...] = ("chat", "text")
    """What it does."""
    tokenizer: str | None = None
    """Folder of its tokenizer and chat template, to count tokens as the engine does."""
    context: ContextPolicy = ContextPolicy()
    """What is sent of a dialogue that is longer than the model's window. It is planned where the
    window is known: by `tokenizer`, or by `context.window_tokens`."""
    release: str = ""
    """Anything that changes with what the model answers: cached answers are of one release."""


class HealthSettings(Spec, frozen=True):
    """When an engine counts as healthy: it has just served a token."""

    interval_s: float = Field(default=5.0, gt=0)
    """Time between checks; one that has just answered a client is not asked."""
    timeout_s: float = Field(default=10.0, gt=0)
    """A check that takes longer has failed, unless the engine answered clients meanwhile. An engine
    that may be busy with one long prompt for longer wants more."""
    num_failures: int = Field(default=2, ge=1)
    """Failed checks in a row after which the engine gets no requests; what it has not begun to
    answer is then asked of another, where there is one."""
    probe: Literal["token", "models", "none"] = "token"
    """`token` asks for one token, `models` only lists models, `none` trusts the clients' requests
    alone."""


class BreakerSettings(Spec, frozen=True):
    """When an engine is left alone. Only status 5xx, time-outs and broken connections count."""

    num_failures: int = Field(default=5, ge=1)
    """Failures in a row that open it."""
    open_s: float = Field(default=5.0, gt=0)
    """How long the engine gets nothing; one request then tries it."""


class Patience(Spec, frozen=True):
    """How long is waited for what, in seconds."""

    connect_s: float = Field(default=1.0, gt=0)
    """For a connection to an engine."""
    first_token_s: float = Field(default=120.0, gt=0)
    """For the first content of an answer; another engine is asked then, if there is one."""
    stall_s: float = Field(default=30.0, gt=0)
    """For the next content of a stream, which ends with an error then. Comments that keep a
    connection alive are no content."""
    request_s: float = Field(default=600.0, gt=0)
    """For a whole answer."""
    queue_s: float = Field(default=30.0, ge=0)
    """For a place at an engine; status 429 then."""
    client_s: float = Field(default=60.0, gt=0)
    """For a client to take bytes or to send its body; it counts as gone then."""


class Sizes(Spec, frozen=True):
    """What is too large."""

    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Largest body of a request."""
    max_messages: int = Field(default=2048, ge=1)
    """Most messages of a request."""
    max_prompt_chars: int = Field(default=2_000_000, ge=1)
    """Most characters of text in a request."""
    max_images: int = Field(default=32, ge=0)
    """Most images of a request."""
    max_image_bytes: int = Field(default=20 * 2**20, ge=1)
    """Largest image, in bytes of its data."""
    max_answer_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Largest answer that is taken from an engine."""
    max_waiting: int = Field(default=512, ge=0)
    """Requests a worker that may wait for a place; further ones get status 429 at once."""


class CacheSettings(Spec, frozen=True):
    """Answers that are given again to requests that say the same, without chance and tools."""

    scope: Literal["off", "key", "tenant", "conversation"] = "off"
    """Who may be given an answer: nobody but the key, the tenant, or the conversation it was given
    to. `off` keeps none. A request's own `cache: false` is obeyed always."""
    ttl_s: float = Field(default=3600.0, gt=0)
    """How long an answer is kept, in seconds."""
    max_bytes: int = Field(default=64 * 2**20, ge=2**16)
    """Memory of each worker for answers; in Redis, its own `maxmemory` holds."""


class TraceSettings(Spec, frozen=True):
    """What is kept and told of requests."""

    store: bool = True
    """Keep a record of every request in the database; feedback is tied to it."""
    keep_days: float = Field(default=30.0, gt=0)
    """How long, in days; responses are kept as long."""
    content: bool = False
    """Keep the messages and answers, too. They may be personal data."""
    otlp_endpoint: str | None = None
    """Where spans are sent by OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`."""
    otlp_headers: Mapping[str, str] = {}
    """Headers that the collector wants."""
    service_name: str = "dialoop-gateway"
    """What the collector calls this gateway."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of traces that begin here to send; those of clients follow the client's choice."""
    access_log: bool = True
    """One line of JSON a request to standard error."""


def _entry(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class GatewayJob(Spec, frozen=True):
    """Serve any number of engines behind one governed OpenAI-compatible URL."""

    aliases: ClassVar[Mapping[str, str]] = {"engine": "engines"}

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` opens the gateway to the network."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one, which is reported."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the port; each is one busy core."""
    replace: bool = False
    """Take over from the gateway that runs on the port, without a refused connection or a dropped
    stream; it ends when its open requests have."""
    engines: tuple[Annotated[EngineEntry, BeforeValidator(_entry)], ...] = Field(min_length=1)
    """Servers that answer; a plain URL will do."""
    models: Mapping[str, ModelEntry] = {}
    """Models by the name that clients use; the engines' own models unless given."""
    model_aliases: Mapping[str, str] = {}
    """Further names, each of a model."""
    routing: Policy = "affinity"
    """Which of several engines is asked: `affinity` keeps a conversation where its prefix is
    cached unless that engine is much busier than others, `least_loaded` takes the less busy one of
    two at random, `round_robin` one after the other."""
    require_keys: bool = True
    """Whether every request to an API must carry a key of `dialoop keys`."""
    database: str = "sqlite"
    """Where keys, usage, conversations and traces are: `sqlite` (the file `gateway/gateway.db`
    under `DIALOOP_HOME`), `sqlite:////path/to/file.db`, or `postgresql://user:password@host/name`."""
    database_s: float = Field(default=2.0, gt=0)
    """Longest wait for the database, in seconds."""
    redis: str | None = None
    """Redis for limits and cached answers that several gateways share, as `redis://host:port/0`."""
    num_gateways: int = Field(default=1, ge=1)
    """Gateways that share Redis: each keeps its part of a limit while Redis is away."""
    cache: CacheSettings = CacheSettings()
    """Answers that are given again."""
    traces: TraceSettings = TraceSettings()
    """What is kept and told of requests."""
    health: HealthSettings = HealthSettings()
    """Checks of engines."""
    breaker: BreakerSettings = BreakerSettings()
    """When an engine is left alone."""
    patience: Patience = Patience()
    """Time limits."""
    sizes: Sizes = Sizes()
    """Size limits."""
    guard: str | None = None
    """A filter of what goes in and out, as `module:function`; the function makes it."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the gateway; `*` for all."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose `X-Forwarded-For` is believed."""
    tls_certificate: str | None = None
    """PEM file of the certificate chain, for HTTPS."""
    tls_key: str | None = None
    """PEM file of its private key."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = [engine.label for engine in self.engines]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"engines: two are named `{twice[0]}`; give each a name")
        for name, model in self.models.items():
            for version in model.versions:
                if unknown := [own for own in version.engines if own not in labels]:
                    raise ValueError(f"models.{name}.versions: no engine `{unknown[0]}`")
            if unknown := [other for other in model.fallbacks if other not in self.models]:
                raise ValueError(f"models.{name}.fallbacks: no model `{unknown[0]}`")
            if not any(version.weight for version in model.versions):
                raise ValueError(f"models.{name}.versions: one must have a weight above 0")
        for name, target in self.model_aliases.items():
            if name in self.models:
                raise ValueError(f"model_aliases: `{name}` is a model already")
            if self.models and target not in self.models:
                raise ValueError(f"model_aliases.{name}: no model `{target}`")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: give both or none")
        return self


class ReloadJob(GatewayJob, frozen=True):
    """Give a running gateway a new configuration; no stream is dropped."""


class StatusJob(Spec, frozen=True):
    """Ask a running gateway how it is."""

    port: int = Field(default=8080, ge=1, le=65535)
    """Its port."""
