"""Combines the kubelet's and the API server's information about which pod has which device."""

from __future__ import annotations

from typing import Any

from uellm.api.names import MEASURING_LABEL
from uellm.profiler.allocations import allocations
from uellm.profiler.podresources import Held, PodKey

ENGINE = PodKey("default", "engine-0")
OTHER = PodKey("default", "other")


def pod(key: PodKey, uid: str, *, phase: str = "Running", leaving: bool = False) -> dict[str, Any]:
    metadata = {"namespace": key.namespace, "name": key.name, "uid": uid}
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": metadata, "status": {"phase": phase}}


def held(**devices: PodKey) -> Held:
    return Held(devices, frozenset(devices.values()))


def test_a_device_is_allocated_to_the_uid_of_its_pod():
    found = allocations(held(a=ENGINE), [pod(ENGINE, "uid-1"), pod(OTHER, "uid-2")], {})
    assert found[:2] == ({"a": "uid-1"}, True)


def test_a_pod_that_the_api_server_does_not_name_still_has_its_device():
    found = allocations(held(a=ENGINE), [], {})
    assert found[:2] == ({"a": "default/engine-0"}, False)


def test_a_long_name_in_place_of_a_uid_fits_the_field():
    key = PodKey("n" * 63, "p" * 253)
    assert len(allocations(held(a=key), [], {}).pod_uids["a"]) == 64


def test_a_kubelet_that_was_just_started_again_frees_nothing():
    found = allocations(Held(), [pod(ENGINE, "uid-1")], {"a": "uid-1"})
    assert found[:2] == ({"a": "uid-1"}, False)


def test_a_device_is_free_when_the_kubelet_lists_its_pod_without_it():
    found = allocations(Held({}, frozenset({ENGINE})), [pod(ENGINE, "uid-1")], {"a": "uid-1"})
    assert found[:2] == ({}, True)


def test_a_missing_ended_or_terminating_pod_keeps_no_device_that_the_kubelet_does_not_list():
    for pods in ([], [pod(ENGINE, "uid-1", phase="Succeeded")], [pod(ENGINE, "uid-1", leaving=True)]):
        assert allocations(Held(), pods, {"a": "uid-1"})[:2] == ({}, True)


def test_a_terminating_pod_has_its_device_as_long_as_the_kubelet_lists_it():
    found = allocations(held(a=ENGINE), [pod(ENGINE, "uid-1", leaving=True)], {})
    assert found[:2] == ({"a": "uid-1"}, True)


def test_an_ended_pod_has_no_device_though_some_kubelets_list_it():
    found = allocations(held(a=ENGINE), [pod(ENGINE, "uid-1", phase="Failed")], {"a": "uid-1"})
    assert found[:2] == ({}, True)


def test_a_device_that_went_to_another_pod_is_not_kept_for_the_first():
    found = allocations(held(a=OTHER), [pod(ENGINE, "uid-1"), pod(OTHER, "uid-2")], {"a": "uid-1"})
    assert found.pod_uids == {"a": "uid-2"}


MEASURING = PodKey("uellm-system-profiler", "measure-node-1")


def measuring_pod(*, priority: int = -1000, **options: Any) -> dict[str, Any]:
    made = pod(MEASURING, "uid-m", **options)
    made["metadata"]["labels"] = {MEASURING_LABEL: "mark"}
    return {**made, "spec": {"priority": priority}}


def test_the_devices_of_a_measuring_pod_are_free():
    found = allocations(held(a=MEASURING, b=ENGINE), [measuring_pod(), pod(ENGINE, "uid-1")], {})
    assert found == ({"b": "uid-1"}, True, frozenset({MEASURING}), frozenset({"a"}))


def test_they_stay_free_while_the_kubelet_still_lists_a_measuring_pod_that_has_gone():
    found = allocations(held(a=MEASURING), [], {}, {MEASURING})
    assert found == ({}, True, frozenset({MEASURING}), frozenset({"a"}))
    assert allocations(held(a=ENGINE), [pod(ENGINE, "uid-1")], {}, {MEASURING})[:2] == ({"a": "uid-1"}, True)


def test_a_pod_that_nothing_preempts_has_its_devices_whatever_its_labels_say():
    found = allocations(held(a=MEASURING), [measuring_pod(priority=0)], {}, {MEASURING})
    assert found[:2] == ({"a": "uid-m"}, True)
