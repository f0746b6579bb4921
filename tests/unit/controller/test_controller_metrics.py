from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from uellm.controller.metrics import ControllerMetrics, ControllerState
from uellm.controller.probes import probes_app
from uellm.controller.queue import DirtyQueue
from uellm.errors import UellmError
from uellm.kube.kinds import GPUNODEPROFILE, LLMSERVICE
from uellm.metrics.server import WebListener
from uellm.reconcile.cache import Cache


def service(name: str, conditions: dict[str, str], **status: Any) -> dict[str, Any]:
    entries = [{"type": type_, "status": value} for type_, value in conditions.items()]
    return {
        "metadata": {"name": name, "namespace": "team", "resourceVersion": "1", "uid": name},
        "spec": {"replicas": 3},
        "status": {"conditions": entries, **status},
    }


def profile() -> dict[str, Any]:
    devices = [{"index": index, "uuid": f"GPU-{index}", "memoryBytes": 1} for index in range(3)]
    devices[0]["allocatedTo"] = {"podUID": "p"}
    devices[1]["health"] = {"state": "Quarantined"}
    return {"metadata": {"name": "node", "resourceVersion": "1"}, "status": {"source": "NVML", "devices": devices}}


@pytest.fixture
def metrics():
    cache, made = Cache(), ControllerMetrics()
    cache.put(LLMSERVICE, service("chat", {"Ready": "True", "SLOMet": "Unknown", "Other": "True"}, readyReplicas=2))
    cache.put(GPUNODEPROFILE, profile())
    made.show(
        ControllerState(
            cache,
            queue_depth=lambda: 7,
            plans_waiting=lambda: 4,
            is_leader=lambda: True,
            cache_ages_s=lambda: {"pods": 12.5},
        )
    )
    return made


def value(metrics: ControllerMetrics, sample: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(sample, labels)


def test_the_current_state_can_be_scraped(metrics):
    assert value(metrics, "uellm_controller_queue_depth") == 7
    assert value(metrics, "uellm_controller_plans_waiting") == 4
    assert value(metrics, "uellm_controller_leader") == 1
    assert value(metrics, "uellm_controller_cache_age_seconds", kind="pods") == 12.5
    assert value(metrics, "uellm_gpus", state="held") == 1
    assert value(metrics, "uellm_gpus", state="unusable") == 1
    assert value(metrics, "uellm_gpus", state="free") == 1


def test_a_services_metrics_are_its_conditions_and_replicas(metrics):
    chat = {"namespace": "team", "name": "chat"}
    assert value(metrics, "uellm_service_condition", **chat, condition="Ready") == 1
    assert value(metrics, "uellm_service_condition", **chat, condition="SLOMet") == -1
    assert value(metrics, "uellm_service_condition", **chat, condition="Other") is None
    assert value(metrics, "uellm_service_replicas", **chat) == 3
    assert value(metrics, "uellm_service_ready_replicas", **chat) == 2


def test_a_service_that_changes_or_goes_is_shown_so_at_the_next_scrape():
    cache, made, chat = Cache(), ControllerMetrics(), {"namespace": "team", "name": "chat"}
    made.show(ControllerState(cache, queue_depth=int, plans_waiting=int, is_leader=bool, cache_ages_s=dict[str, float]))
    document = service("chat", {"Ready": "False"})
    cache.put(LLMSERVICE, document)
    assert value(made, "uellm_service_condition", **chat, condition="Ready") == 0
    changed = service("chat", {"Ready": "True"}, readyReplicas=3)
    changed["metadata"]["resourceVersion"] = "2"
    cache.put(LLMSERVICE, changed)
    for _ in range(2):
        assert value(made, "uellm_service_condition", **chat, condition="Ready") == 1
        assert value(made, "uellm_service_ready_replicas", **chat) == 3
    cache.remove(LLMSERVICE, changed)
    assert value(made, "uellm_service_ready_replicas", **chat) is None


def test_the_replicas_of_a_service_whose_number_the_operator_chooses_are_those_that_it_chose():
    cache, made = Cache(), ControllerMetrics()
    for name, more in {"serves": {}, "sleeps": {"suspend": True}}.items():
        document = service(name, {"Scaling": "False"}, autoscaling={"replicas": 5})
        document["spec"] |= {"replicas": 0, "autoscaling": {"maxReplicas": 8}, **more}
        cache.put(LLMSERVICE, document)
    made.show(
        ControllerState(
            cache, queue_depth=lambda: 0, plans_waiting=lambda: 0, is_leader=lambda: True, cache_ages_s=dict
        )
    )
    assert value(made, "uellm_service_replicas", namespace="team", name="serves") == 5
    assert value(made, "uellm_service_replicas", namespace="team", name="sleeps") == 0
    assert value(made, "uellm_service_condition", namespace="team", name="serves", condition="Scaling") == 0


async def test_passes_are_counted_by_how_they_ended(metrics):
    class Busy(UellmError):
        transient = True

    errors = {"good": None, "busy": Busy("later"), "bad": ValueError("a bug")}

    async def handle(key: str) -> None:
        if (error := errors.pop(key, None)) is not None:
            raise error

    queue: DirtyQueue[str] = DirtyQueue(handle, metrics)
    for key in list(errors):
        queue.mark(key)
        await queue._work(queue._schedule.take(1e12))
    assert {result: value(metrics, "uellm_controller_passes_total", result=result) for result in RESULTS} == RESULTS
    assert value(metrics, "uellm_controller_pass_seconds_count") == 3


RESULTS = {"done": 1, "retried": 1, "failed": 1}


async def test_requests_to_the_api_server_are_counted_by_verb_and_code(metrics):
    calls = metrics.api_calls
    calls.observe("GET", 200, 0.1)
    calls.observe("PATCH", 0, 1.0)
    calls.observe("WATCH", 200, 60.0)
    assert value(metrics, "uellm_api_requests_total", verb="GET", code="200") == 1
    assert value(metrics, "uellm_api_requests_total", verb="PATCH", code="none") == 1
    assert value(metrics, "uellm_api_request_seconds_count", verb="GET") == 1
    assert value(metrics, "uellm_api_request_seconds_count", verb="WATCH") is None


async def test_they_are_served_beside_the_probes_in_the_format_of_prometheus(metrics, unused_tcp_port):
    probes = WebListener(probes_app({}, lambda: True, metrics.registry), "127.0.0.1", unused_tcp_port, purpose="probes")
    url = f"http://127.0.0.1:{unused_tcp_port}/metrics"
    async with probes, aiohttp.ClientSession() as client, client.get(url) as response:
        assert response.content_type == "text/plain"
        names = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"uellm_controller_passes", "uellm_service_condition", "uellm_gpus"} <= names
