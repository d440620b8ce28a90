"""Numbers of a running server as Prometheus reads them."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from eval.answering import Lane
from eval.openai_answers import Reply

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts what is asked and answered; the rest is looked up when it is shown."""

    def __init__(self, lanes: dict[str, Lane], num_open: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._statuses = Counter("sightline_requests", "requests by status", ["status"], registry=registry)
        self._tokens = Counter(
            "sightline_tokens",
            "tokens of prompts, those reused, generated",
            ["model", "kind"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sightline_request_seconds", "time until answered", ["model"], buckets=SECONDS, registry=registry
        )
        gauges: Iterable[tuple[str, str, Callable[[Lane], float]]] = (
            ("rows", "rows of the cache", lambda lane: len(lane.batch.answers)),
            ("waiting", "answers that wait for a row", lambda lane: len(lane.waiting)),
            ("prefix_bytes", "memory for states of earlier answers", lambda lane: lane.prefixes.num_bytes),
        )
        for name, words, look in gauges:
            gauge = Gauge(f"sightline_{name}", words, ["model"], registry=registry)
            for model, lane in lanes.items():
                gauge.labels(model).set_function(lambda lane=lane, look=look: look(lane))
        Gauge("sightline_open", "answers that somebody waits for", registry=registry).set_function(num_open)

    def count_status(self, status: int) -> None:
        """Count a request by how it was answered."""
        self._statuses.labels(status).inc()

    def count_reply(self, reply: Reply, seconds: float) -> None:
        """Count the tokens of answers, finished or not, and the time that they took."""
        usage = reply.usage()
        reused = usage["prompt_tokens_details"]["cached_tokens"]
        numbers = {
            "prompt": usage["prompt_tokens"],
            "reused": reused,
            "generated": usage["completion_tokens"],
        }
        for kind, number in numbers.items():
            self._tokens.labels(reply.model, kind).inc(number)
        self._seconds.labels(reply.model).observe(seconds)

    def text(self) -> bytes:
        """Return all numbers."""
        return generate_latest(self._registry)
