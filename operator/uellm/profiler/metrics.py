"""The profiler's metrics."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge

from uellm.metrics.api_calls import ApiCalls


class ProfilerMetrics:
    """Counters and gauges of the profiler of one node, in a registry of its own."""

    def __init__(self, node: str) -> None:
        self.registry = CollectorRegistry()
        self.api_calls = ApiCalls(self.registry)
        self._node = node
        self._written = Gauge(
            "uellm_profile_written_timestamp_seconds",
            "When the node's GPUNodeProfile was written last, or else was due; 0 on a node without GPUs.",
            ["node"],
            registry=self.registry,
        )
        self._devices = Gauge(
            "uellm_profile_devices", "GPUs of the node, by state.", ["node", "state"], registry=self.registry
        )
        self._measured = Gauge(
            "uellm_profile_measured_devices",
            "GPUs of the node whose rates are measured.",
            ["node"],
            registry=self.registry,
        )
        self._trouble = Gauge(
            "uellm_profiler_source_failing",
            "1 while the GPUs cannot be observed, else 0.",
            ["node"],
            registry=self.registry,
        )
        self._failures = Counter(
            "uellm_profile_write_failures", "Writes of the profile that failed.", registry=self.registry
        )
        self._is_due = False
        self._written.labels(node).set(0)
        self._trouble.labels(node).set(0)

    def written(self, states: dict[str, int], measured: int) -> None:
        """The profile was written; `states`: its GPUs by state; `measured`: how many have measured rates."""
        self._written.labels(self._node).set(time.time())
        self._measured.labels(self._node).set(measured)
        for state, count in states.items():
            self._devices.labels(self._node, state).set(count)

    def due(self) -> None:
        """The node has a profile, or GPUs that one is to be written of: it is old where that does not happen."""
        if not self._is_due:
            self._is_due = True
            self._written.labels(self._node).set(time.time())

    def not_written(self) -> None:
        """The profile could not be written."""
        self._failures.inc()

    def source_fails(self, fails: bool) -> None:
        """Whether the GPUs could be observed the last time."""
        self._trouble.labels(self._node).set(fails)
