"""What `/metrics` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper ends of the histogram's classes."""


class Metrics:
    """Counts the requests of one server."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "embed_rl_requests", "Requests of vectors by status.", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "embed_rl_request_seconds",
            "Seconds of requests that got vectors.",
            buckets=SECONDS,
            registry=registry,
        )
        self.items = Counter("embed_rl_items", "Items that got a vector.", registry=registry)
        self.tokens = Counter(
            "embed_rl_prompt_tokens", "Tokens that the Embedder read.", registry=registry
        )
        self.in_flight = Gauge(
            "embed_rl_requests_in_flight",
            "Requests that wait or are worked on.",
            registry=registry,
        )
        self.replicas = Gauge("embed_rl_replicas", "Replicas that can serve.", registry=registry)

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
