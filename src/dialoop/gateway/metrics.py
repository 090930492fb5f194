"""What the gateway counts, in Prometheus' text format, over all worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dialoop.gateway.call import Call
    from dialoop.gateway.history import History
    from dialoop.gateway.upstream import Upstream

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class GatewayMetrics:
    """The numbers of one worker; its page shows those of all.

    Args:
        is_shared: whether several workers write their numbers into one folder, which the
            environment names (`PROMETHEUS_MULTIPROC_DIR`).
    """

    def __init__(self, *, is_shared: bool) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._shared = CollectorRegistry() if is_shared else None
        if self._shared:
            MultiProcessCollector(self._shared)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dialoop_gateway_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            mode = "livesum"
            return Gauge(
                f"dialoop_gateway_{name}", text, labels, registry=registry, multiprocess_mode=mode
            )

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            buckets = _SHORT if name in ("overhead_seconds", "loop_lag_seconds") else _SECONDS
            return Histogram(
                f"dialoop_gateway_{name}", text, labels, registry=registry, buckets=buckets
            )

        self._requests = counter("requests", "Requests.", "path", "model", "status")
        self._tokens = counter("tokens", "Tokens, as engines count them.", "model", "kind")
        self._refused = counter("refused", "Requests refused before any engine.", "code")
        self._retries = counter("retries", "Further engines asked.", "model")
        self._cut = counter("cut_answers", "Streams that ended with an error.", "model", "code")
        self._gone = counter("gone_clients", "Requests whose client went away.", "model")
        self.cache = counter("cache", "Looks into the cache of answers.", "result")
        self._blocked = counter("blocked", "What a filter stopped.", "side")
        self._open = gauge("open_requests", "Requests at engines.", "engine")
        self._up = gauge("engine_up", "Workers that find the engine healthy.", "engine")
        self._late = gauge("history_waiting", "Turns and responses that wait to be written.")
        self._lost = gauge("history_lost", "Turns and responses whose writing was given up.")
        self._opened = gauge("breaker_opened", "How often its breaker opened.", "engine")
        self._waiting = gauge("waiting_requests", "Requests in line.")
        self._first = histogram("time_to_first_token_seconds", "To the first content.", "model")
        self._between = histogram(
            "time_per_output_token_seconds", "Mean time between tokens of an answer.", "model"
        )
        self._queue = histogram("queue_seconds", "Time in line.", "model")
        self._whole = histogram("request_seconds", "To the end of the answer.", "model")
        self._overhead = histogram(
            "overhead_seconds", "To the first byte, without the time of engines and of the line."
        )
        self.loop_lag = histogram("loop_lag_seconds", "How late the event loop is.")

    def count(self, path: str, call: Call | None, status: int, now: float) -> None:
        """One request has ended.

        Args:
            path: a known one, or `other`.
            call: what became of it; None where it was refused before.
            status: of HTTP; 499 where the client went away.
            now: the loop's clock.
        """
        model = call.model.name if call else ""
        self._requests.labels(path, model, str(status)).inc()
        if call is None:
            return
        if status == 499:
            self._gone.labels(model).inc()
        if call.num_attempts > 1:
            self._retries.labels(model).inc(call.num_attempts - 1)
        if call.usage.is_known:
            self._tokens.labels(model, "prompt").inc(call.usage.prompt)
            self._tokens.labels(model, "completion").inc(call.usage.completion)
            self._tokens.labels(model, "cached").inc(call.usage.cached)
        self._whole.labels(model).observe(now - call.began)
        self._queue.labels(model).observe(call.queue_s)
        if call.first_at and call.is_stream:
            self._first.labels(model).observe(call.first_at - call.began)
            if call.last_at and call.usage.completion > 1:
                took = call.last_at - call.first_at
                self._between.labels(model).observe(took / (call.usage.completion - 1))

    def refuse(self, code: str) -> None:
        """A request was refused before any engine was asked."""
        self._refused.labels(code).inc()

    def cut(self, call: Call, code: str) -> None:
        """A stream ended with an error."""
        self._cut.labels(call.model.name, code).inc()

    def block(self, side: str) -> None:
        """A filter stopped an `input` or an `output`."""
        self._blocked.labels(side).inc()

    def overhead(self, seconds: float) -> None:
        """The gateway's own time before the first byte."""
        self._overhead.observe(seconds)

    def text(self, engines: Iterable[Upstream], num_waiting: int, history: History) -> bytes:
        """The page that Prometheus reads."""
        self._late.set(history.num_waiting)
        self._lost.set(history.num_lost)
        self._waiting.set(num_waiting)
        for engine in engines:
            self._open.labels(engine.label).set(engine.num_open)
            self._up.labels(engine.label).set(engine.is_healthy)
            self._opened.labels(engine.label).set(engine.breaker.num_opened)
        return generate_latest(self._shared or self._registry)
