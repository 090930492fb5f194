"""What the server counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServerMetrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "dialoop_requests",
            "Requests by path and HTTP status (499: the client went away).",
            ["path", "status"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "dialoop_prompt_tokens", "Prompt tokens of answered requests.", registry=registry
        )
        self.generated_tokens = Counter(
            "dialoop_generated_tokens", "Tokens generated.", registry=registry
        )
        self.open_requests = Gauge(
            "dialoop_open_requests", "Generations that run or wait.", registry=registry
        )
        self.engine_up = Gauge(
            "dialoop_engine_up", "1 while the engine answers, else 0.", registry=registry
        )
        self.first_token_s = Histogram(
            "dialoop_first_token_seconds",
            "From the request to its first text.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.request_s = Histogram(
            "dialoop_request_seconds",
            "From the request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
