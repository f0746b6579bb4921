"""Counts requests to the API server by verb and status code."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

# A watch lasts as long as it may, so its duration means nothing.
WATCH = "WATCH"


class ApiCalls:
    """Metrics of one process's requests to the API server. `observe` is given to `Kube.connect`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "uellm_api_requests",
            "Requests to the API server, by verb and status code; code `none` where no answer came.",
            ["verb", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "uellm_api_request_seconds",
            "Time until the API server answered, watches not included.",
            ["verb"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
            registry=registry,
        )

    def observe(self, verb: str, code: int, seconds: float) -> None:
        """One request ended. `code`: 0 where no answer came."""
        self._calls.labels(verb, str(code) if code else "none").inc()
        if verb != WATCH:
            self._seconds.labels(verb).observe(seconds)
