"""The controller's metrics. Events are counted as they happen; the state is read at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from uellm.metrics.api_calls import ApiCalls
from uellm.reconcile.cache import Cache
from uellm.reconcile.each_service import EachService
from uellm.reconcile.scaling.scaling import wanted_replicas

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Conditions that an alert or a dashboard reads; the others are in the status.
_CONDITIONS = ("Ready", "Stalled", "Planned", "SLOFeasible", "SLOMet", "PredictionsHold", "Scaling")
_VALUES = {"True": 1.0, "False": 0.0}


class ControllerMetrics:
    """Counters and histograms of the controller, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.api_calls = ApiCalls(self.registry)
        self._passes = Counter(
            "uellm_controller_passes", "Passes over a service, by result.", ["result"], registry=self.registry
        )
        self._pass_seconds = Histogram(
            "uellm_controller_pass_seconds", "Time of a pass.", buckets=_SECONDS, registry=self.registry
        )
        self._wait_seconds = Histogram(
            "uellm_controller_queue_wait_seconds",
            "Time for which a service that was due waited for its pass.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._plan_seconds = Histogram(
            "uellm_controller_plan_seconds",
            "Time of a search, by outcome: `Planned`, or the reason of the condition.",
            ["outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def passed(self, result: str, seconds: float) -> None:
        """A pass ended: `done`, `retried` after a failure that may pass by itself, or `failed`."""
        self._passes.labels(result).inc()
        self._pass_seconds.observe(seconds)

    def waited(self, seconds: float) -> None:
        """A service that was due waited for this time."""
        self._wait_seconds.observe(seconds)

    def planned(self, outcome: str, seconds: float) -> None:
        """A search ended."""
        self._plan_seconds.labels(outcome).observe(seconds)

    def show(self, state: ControllerState) -> None:
        """Read this at every scrape."""
        self.registry.register(state)


class ControllerState:
    """What is read at every scrape: the queue, the lease, the age of the cache, and the services."""

    def __init__(
        self,
        cache: Cache,
        *,
        queue_depth: Callable[[], int],
        plans_waiting: Callable[[], int],
        is_leader: Callable[[], bool],
        cache_ages_s: Callable[[], Mapping[str, float]],
    ) -> None:
        self._cache = cache
        self._gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("uellm_controller_queue_depth", "Services that are due or at work.", queue_depth),
            ("uellm_controller_plans_waiting", "Services that wait for the planner.", plans_waiting),
            ("uellm_controller_leader", "1 where this process holds the lease and works.", is_leader),
        )
        self._cache_ages_s = cache_ages_s
        self._services = EachService(cache, _figures)

    def describe(self) -> list[Metric]:
        """Nothing: what is there depends on the cluster."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges' values now."""
        for name, text, read in self._gauges:
            yield GaugeMetricFamily(name, text, value=float(read()))
        ages = GaugeMetricFamily(
            "uellm_controller_cache_age_seconds",
            "Time since the last event or full list of a kind; full lists come every 10 minutes.",
            labels=["kind"],
        )
        for kind, age_s in self._cache_ages_s().items():
            ages.add_metric([kind], age_s)
        yield ages
        yield from _of_services(self._services.now())
        yield _of_gpus(self._cache)


class _ServiceFigures(NamedTuple):
    """What is shown of a service."""

    conditions: Sequence[tuple[str, float]]
    replicas: int
    ready_replicas: int
    gpus_per_replica: int
    error_ratio: float | None
    """Of the prediction."""


def _figures(document: Mapping[str, Any]) -> _ServiceFigures:
    status = document.get("status") or {}
    conditions = [
        (entry["type"], _VALUES.get(entry["status"], -1.0))
        for entry in status.get("conditions") or ()
        if entry["type"] in _CONDITIONS
    ]
    measured = status.get("measured")
    return _ServiceFigures(
        conditions,
        wanted_replicas(document),
        status.get("readyReplicas") or 0,
        (status.get("plan") or {}).get("gpusPerReplica") or 0,
        None if measured is None else (measured.get("errorPercent") or 0) / 100,
    )


def _of_services(services: Mapping[tuple[str, str], _ServiceFigures]) -> Iterator[Metric]:
    labels = ["namespace", "name"]
    held = GaugeMetricFamily(
        "uellm_service_condition",
        "A condition of an LLMService: 1 True, 0 False, -1 Unknown.",
        labels=[*labels, "condition"],
    )
    wanted = GaugeMetricFamily(
        "uellm_service_replicas", "Replicas that are to run, as the spec says or the operator chose.", labels=labels
    )
    ready = GaugeMetricFamily("uellm_service_ready_replicas", "Replicas that are ready.", labels=labels)
    gpus = GaugeMetricFamily("uellm_service_gpus_per_replica", "GPUs of a replica, by the plan.", labels=labels)
    error = GaugeMetricFamily(
        "uellm_service_prediction_error_ratio",
        "Measured time of the engine's steps over the predicted one, less 1.",
        labels=labels,
    )
    for name, figures in services.items():
        for condition, value in figures.conditions:
            held.add_metric([*name, condition], value)
        wanted.add_metric(name, figures.replicas)
        ready.add_metric(name, figures.ready_replicas)
        gpus.add_metric(name, figures.gpus_per_replica)
        if figures.error_ratio is not None:
            error.add_metric(name, figures.error_ratio)
    yield from (held, wanted, ready, gpus, error)


def _of_gpus(cache: Cache) -> Metric:
    gpus = GaugeMetricFamily(
        "uellm_gpus", "GPUs of all profiled nodes: free, held by a pod, or unusable.", labels=["state"]
    )
    counts = {"free": 0, "held": 0, "unusable": 0}
    for node in cache.profiled_nodes():
        usable = set(node.usable)
        for device in node.facts.devices:
            state = "unusable" if device.uuid not in usable else "held" if device.uuid in node.holders else "free"
            counts[state] += 1
    for state, count in counts.items():
        gpus.add_metric([state], count)
    return gpus
