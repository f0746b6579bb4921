"""The scheduler of the chart."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from helpers.chart import (
    CHART,
    Render,
    named,
)
from uellm.api import LLMService

# helm itself may have to be built first.
pytestmark = pytest.mark.timeout(600)


def test_the_engine_image_is_upstreams_by_default(render: Render) -> None:
    def images(objects: list[dict[str, Any]]) -> dict[str, str]:
        (container,) = named(objects, "Deployment", "uellm-operator")["spec"]["template"]["spec"]["containers"]
        return {entry["name"]: entry["value"] for entry in container["env"] if entry["name"].endswith("_IMAGE")}

    assert images(render()) == {
        "UELLM_ENGINE_IMAGE": "vllm/vllm-openai:v0.32.0",
        "UELLM_SIDECAR_IMAGE": "registry.uellm.io/sidecar:0.1.0",
        "UELLM_LAUNCHER_IMAGE": "registry.uellm.io/launcher:0.1.0",
        "UELLM_INSPECTOR_IMAGE": "registry.uellm.io/operator:0.1.0",
    }
    assert images(render(simulated=True))["UELLM_ENGINE_IMAGE"] == "uellm.local/engine-cpu:dev"


def scheduler_configuration(objects: list[dict[str, Any]]) -> dict[str, Any]:
    text = named(objects, "ConfigMap", "uellm-scheduler")["data"]["scheduler.yaml"]
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_the_scheduler_has_the_name_that_services_ask_for_and_an_extender_that_it_cannot_pass(render: Render) -> None:
    configuration = scheduler_configuration(render())
    spec = {"model": {"uri": "hf://a/b"}}
    service = LLMService.model_validate({"metadata": {"name": "a"}, "spec": spec})
    assert [p["schedulerName"] for p in configuration["profiles"]] == [service.spec.placement.scheduler_name]
    (extender,) = configuration["extenders"]
    assert extender["urlPrefix"] == "http://127.0.0.1:8888/"
    assert extender["ignorable"] is False
    assert extender["nodeCacheCapable"] is True
    assert extender["managedResources"] == [{"name": "nvidia.com/gpu", "ignoredByScheduler": False}]
    assert configuration["percentageOfNodesToScore"] == 100


def test_several_schedulers_elect_a_leader(render: Render) -> None:
    alone, several = render(), render({"scheduler": {"replicas": 2}})
    assert scheduler_configuration(alone)["leaderElection"]["leaderElect"] is False
    assert named(alone, "Deployment", "uellm-scheduler")["spec"]["strategy"] == {"type": "Recreate"}
    assert scheduler_configuration(several)["leaderElection"]["leaderElect"] is True
    # What Kubernetes would fill in could not be removed again by an upgrade to one replica on the server's side.
    strategy = named(several, "Deployment", "uellm-scheduler")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


@pytest.mark.parametrize(
    ("version", "paths"), [("v1.30.14", ["/healthz", "/healthz"]), ("v1.31.0-rc.1", ["/livez", "/readyz"])]
)
def test_the_scheduler_is_asked_by_paths_that_its_version_has(render: Render, version: str, paths: list[str]) -> None:
    pods = named(render(kube_version=version), "Deployment", "uellm-scheduler")["spec"]["template"]["spec"]
    assert probed_paths(pods["containers"][0]) == paths


@pytest.mark.parametrize(
    ("image", "paths"),
    [
        ("registry:5000/kube-scheduler:v1.30.1", ["/healthz", "/healthz"]),
        ("registry:5000/kube-scheduler@sha256:" + "0" * 64, ["/livez", "/readyz"]),
    ],
    ids=["an older image", "an image whose version is unknown"],
)
def test_what_the_schedulers_own_image_has_counts(render: Render, image: str, paths: list[str]) -> None:
    objects = render({"images": {"kubeScheduler": image}})
    assert (
        probed_paths(named(objects, "Deployment", "uellm-scheduler")["spec"]["template"]["spec"]["containers"][0])
        == paths
    )


def probed_paths(container: dict[str, Any]) -> list[str]:
    return [container[each]["httpGet"]["path"] for each in ("livenessProbe", "readinessProbe")]


def test_a_changed_configuration_restarts_the_scheduler(render: Render) -> None:
    def digest(objects: list[dict[str, Any]]) -> str:
        template = named(objects, "Deployment", "uellm-scheduler")["spec"]["template"]
        return str(template["metadata"]["annotations"]["uellm.io/configuration"])

    assert digest(render()) != digest(render({"scheduler": {"extenderWeight": 1}}))


def test_kube_scheduler_is_of_the_clusters_own_version(render: Render) -> None:
    pod = named(render(), "Deployment", "uellm-scheduler")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.k8s.io/kube-scheduler:v1.34.2"


def test_a_version_that_names_no_image_of_the_scheduler_is_refused(
    helm: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    own = ("--set", "images.kubeScheduler=example.com/k:1")
    for version in ("1.31", "v1.31"):
        done = helm("template", "uellm", str(CHART), "--kube-version", version)
        assert done.returncode != 0
        assert "the cluster's version is v1.31, which names no image" in done.stderr
        assert "set images.kubeScheduler" in done.stderr
        done = helm("template", "uellm", str(CHART), "--kube-version", version, *own)
        assert done.returncode == 0, done.stderr
    done = helm("template", "uellm", str(CHART), "--kube-version", "v1.31", "--set", "scheduler.enabled=false")
    assert done.returncode == 0, done.stderr
