"""The extender's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from uellm.extender.view import View
from uellm.metrics.api_calls import ApiCalls


class ExtenderMetrics:
    """Counters and histograms of the extender, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.api_calls = ApiCalls(self.registry)
        self._seconds = Histogram(
            "uellm_extender_request_seconds",
            "Time of a scheduler's call, without those for pods that have no plan.",
            ["verb"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            registry=self.registry,
        )
        self._refusals = Counter(
            "uellm_extender_refusals",
            "Nodes that were refused, by reason; `Stale`: whole calls, because the view of the cluster was too old.",
            ["reason"],
            registry=self.registry,
        )
        self._nowhere = Counter(
            "uellm_extender_unplaceable_pods", "Calls that refused every node.", registry=self.registry
        )

    def answered(self, verb: str, seconds: float) -> None:
        """A call was answered."""
        self._seconds.labels(verb).observe(seconds)

    def refused(self, reason: str, nodes: int = 1) -> None:
        """This number of nodes was refused for a reason."""
        self._refusals.labels(reason).inc(nodes)

    def found_no_node(self) -> None:
        """A call refused every node that it was asked about."""
        self._nowhere.inc()

    def show_age_of(self, view: View) -> None:
        """Read the age of the view at every scrape."""
        gauge = Gauge(
            "uellm_extender_view_age_seconds", "Time since the API server was heard of.", registry=self.registry
        )
        gauge.set_function(view.age_s)
