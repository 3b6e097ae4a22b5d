"""What the server counts, for Prometheus. The only module that imports prometheus_client."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..types import Completion

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The counters of one server. `running`, `waiting`: ask how many requests are."""

    def __init__(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("bide_requests", "HTTP requests", ["path", "status"], registry=registry)
        self._turns = Counter("bide_turns", "Finished turns", ["finish_reason"], registry=registry)
        self._ended = Counter("bide_ended_by", "What ended thinking", ["reason"], registry=registry)
        self._thinking = Counter("bide_thinking_tokens", "Thinking tokens", ["source"], registry=registry)
        self._forced = Counter("bide_forced_tokens", "Forced tokens, markers and answer prefix too", registry=registry)
        self._output = Counter("bide_output_tokens", "Output tokens, of engines that count them", registry=registry)
        self._waits = Counter("bide_waits", "Refused ends of thinking", registry=registry)
        self._inexact = Counter("bide_budgets_missed", "Turns outside their minimum or maximum", registry=registry)
        self._first = Histogram(
            "bide_time_to_first_token_seconds", "From arrival, the queue included", buckets=_SECONDS, registry=registry
        )
        self._total = Histogram(
            "bide_turn_seconds", "From arrival to the last token", buckets=_SECONDS, registry=registry
        )
        Gauge("bide_running", "Requests at work", registry=registry).set_function(running)
        Gauge("bide_waiting", "Requests in the queue", registry=registry).set_function(waiting)
        for source in ("sampled", "forced"):
            self._thinking.labels(source)

    def request(self, path: str, status: int) -> None:
        """An HTTP request was answered. `path`: of a route, never as a client wrote it."""
        self._requests.labels(path, str(status)).inc()

    def turn(self, completion: Completion, first: float, total: float) -> None:
        """A turn is over. `first`, `total`: seconds from its arrival to its first token and to its end."""
        budget = completion.budget
        self._turns.labels(completion.finish_reason or "none").inc()
        self._ended.labels(budget["ended_by"] or "none").inc()
        self._thinking.labels("sampled").inc(budget["sampled"])
        self._thinking.labels("forced").inc(budget["used"] - budget["sampled"])
        self._forced.inc(budget["forced_tokens"])
        self._output.inc(len(completion.token_ids or ()))
        self._waits.inc(budget["waits"])
        self._inexact.inc(not budget["exact"])
        self._first.observe(first)
        self._total.observe(total)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
